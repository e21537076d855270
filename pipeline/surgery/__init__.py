"""From a trained network with dead channels to a smaller one that computes the same function."""

from pipeline.surgery.anatomy import Anatomy, anatomy
from pipeline.surgery.plan import Compact, Plan, Source, load_compact, save_compact
from pipeline.surgery.shrink import shrink

__all__ = ["Anatomy", "Compact", "Plan", "Source", "anatomy", "load_compact", "save_compact", "shrink"]
