"""Building an engine in a test: the options that a test does not care about."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from export.engine_from_onnx import Engine, engine_from_onnx

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def build(onnx_file: Path, path: Path, **changes: Any) -> Engine:
    options: dict[str, Any] = {
        "flavour": "tensorrt_rtx",
        "precision": "fp32",
        "target": "SM86",
        "profile": (1, 8, 16),
        "workspace_mib": 64,
        "tf32": False,
        "time_limit_s": 60,
        "plan_sha256": None,
    }
    return engine_from_onnx(onnx_file, path, **{**options, **changes})
