"""Engines in a test: real ones with options that do not matter there, and files that stand for one."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.engines import Engine, engine_from_onnx, manifest
from export.engines.options import engine_options
from tests.export.graphs import conv_net

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


PROFILE = {"min": 1, "opt": 8, "max": 16}
OPTIONS: dict[str, Any] = {
    "profile": PROFILE,
    "more_profiles": [],
    "workspace_mib": 64,
    "optimization_level": 3,
    "tf32": False,
    "version_compatible": False,
    "hardware_compatibility": "none",
    "refit": False,
    "sparse": False,
    "timing_cache": None,
    "pin_tactics": False,
    "time_limit_s": 600.0,
}


def build(onnx_file: Path, path: Path, **changes: Any) -> Engine:
    """`changes` are arguments of `engine_from_onnx` and options of the engine; batches 1 to 16 for SM86."""
    plain = {"profile": PROFILE, "workspace_mib": 64, "timing_cache": None, "time_limit_s": 60}
    if "profile" in changes:
        changes["profile"] = dict(zip(PROFILE, changes["profile"], strict=True))
    options = engine_options({**plain, **{name: changes.pop(name) for name in OPTIONS if name in changes}})
    return engine_from_onnx(
        onnx_file, path, **{"flavour": "tensorrt_rtx", "target": "SM86", "options": options, **changes}
    )


def typed_net(path: Path, kind: str, **net: Any) -> Path:
    """`conv_net` computed in ONNX's `kind` (FLOAT16, BFLOAT16): weights cast, a Cast after the input and one before the
    output, as a converter leaves them."""
    model = onnx.load(str(conv_net(path, **net)))
    number, graph = onnx.TensorProto.DataType.Value(kind), model.graph
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.helper.make_tensor(weight.name, number, values.shape, values.flatten().tolist()))
    graph.node[0].input[0], graph.node[-1].output[0] = "input_cast", "logits_cast"
    first = onnx.helper.make_node("Cast", ["input"], ["input_cast"], to=number, name="cast_in")
    last = onnx.helper.make_node("Cast", ["logits_cast"], ["logits"], to=onnx.TensorProto.FLOAT, name="cast_out")
    nodes = [first, *graph.node, last]
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import[0].version = 22  # Conv in bfloat16
    onnx.save(model, str(path))
    return path


def document(engine: Path, **changes: Any) -> dict[str, Any]:
    """A manifest for the bytes in `engine`, whatever they are: batches 1 to 16 of 3x8x8, five logits."""
    shapes = {key: [size, 3, 8, 8] for key, size in (("min", 1), ("opt", 8), ("max", 16))}
    fields: dict[str, Any] = {
        "schema": 3,
        "file": engine.name,
        "sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
        "bytes": engine.stat().st_size,
        "flavour": "tensorrt",
        "version": "10.9.0.34",
        "cuda": {"library": "12", "driver": None},
        "targets": ["SM86"],
        "precision": "fp16",
        "inputs": [{"name": "input", "dtype": "float32", "shape": [None, 3, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [None, 5]}],
        "profiles": [{"input": shapes}],
        "layers": {"CONVOLUTION": {"HALF": 2}},
        "proof": {
            "source": "network",
            "precision": "fp16",
            "share": 1.0,
            "products": {"fp16": 2},
            "others": [],
            "unknown": 0,
            "reformats": 0,
            "casts": 2,
            "quantizes": 0,
        },
        "options": OPTIONS,
        "settings": {},
        "weights": None,
        "onnx": {"file": "net.onnx", "sha256": "0" * 64},
        "timing_cache": None,
        "plan_sha256": None,
        "versions": {},
        "gpu": None,
        "seconds": 1.5,
        "notes": [],
        "measured": None,
    }
    return {**fields, **changes}


def stand_in(path: Path, content: bytes = b"not a real engine", **changes: Any) -> Path:
    """A file with a manifest that is true of its bytes; no TensorRT would load it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    manifest.write(path, manifest.Manifest.model_validate(document(path, **changes)))
    return path
