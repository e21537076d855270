"""From a trained network with dead channels to a smaller one that computes the same function."""

from pipeline.surgery.compact import load_compact, save_compact
from pipeline.surgery.plan import Compact, Plan, Source
from pipeline.surgery.shrink import shrink
from pipeline.surgery.watch import Anatomy, anatomy

__all__ = ["Anatomy", "Compact", "Plan", "Source", "anatomy", "load_compact", "save_compact", "shrink"]
