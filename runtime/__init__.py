"""Run what was exported, and measure it. Imports nothing of `pipeline` and `export`."""

import os

from runtime.backends import Session, TensorSpec, open_session
from runtime.errors import UserError

__all__ = ["Session", "TensorSpec", "UserError", "open_session"]

# Before anything imports ONNX Runtime, which else keeps a device id and a database of events in ~/.cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
