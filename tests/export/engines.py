"""Engines in a test: real ones with options that do not matter there, and files that stand for one."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from export import manifest
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


def document(engine: Path, **changes: Any) -> dict[str, Any]:
    """A manifest for the bytes in `engine`, whatever they are: batches 1 to 16 of 3x8x8, five logits."""
    shapes = {key: [size, 3, 8, 8] for key, size in (("min", 1), ("opt", 8), ("max", 16))}
    fields: dict[str, Any] = {
        "schema": 1,
        "file": engine.name,
        "sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
        "bytes": engine.stat().st_size,
        "flavour": "tensorrt",
        "version": "10.9.0.34",
        "target": "SM86",
        "precision": "fp16",
        "inputs": [{"name": "input", "dtype": "float32", "shape": [None, 3, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [None, 5]}],
        "profiles": [{"input": shapes}],
        "layers": {"CONVOLUTION": {"HALF": 2}},
        "tf32": False,
        "workspace_mib": 64,
        "optimization_level": 3,
        "onnx": {"file": "net.onnx", "sha256": "0" * 64},
        "plan_sha256": None,
        "versions": {},
        "gpu": None,
        "seconds": 1.5,
        "command": "python -m export net.onnx x.engine",
    }
    return {**fields, **changes}


def stand_in(path: Path, content: bytes = b"not a real engine", **changes: Any) -> Path:
    """A file with a manifest that is true of its bytes; no TensorRT would load it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    manifest.write(path, manifest.Manifest.model_validate(document(path, **changes)))
    return path
