"""Run what was exported, and measure it. Imports nothing of `pipeline` and `export`."""

from runtime.backend import Session, TensorSpec, open_session
from runtime.errors import UserError

__all__ = ["Session", "TensorSpec", "UserError", "open_session"]
