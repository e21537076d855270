"""A graph in lower precision with options that do not matter in a test, judged by what the fp32 graph says itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from export.precision.int8 import Calibration
from export.precision.lower import CastGraph, Images, Lowering, Precision, Rules
from runtime.measure.judged import Judge
from tests.export.graphs import Array, Floats, images


def run(path: Path, x: Array) -> Floats:
    """The first output in ONNX Runtime, int8 products exact on any processor."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs: Any = session.run(None, {"input": x})
    return np.asarray(outputs[0])


def evaluate(path: Path, x: Array) -> Floats:
    """The first output in ONNX's reference evaluator: NumPy, every intermediate value in its own type."""
    outputs: Any = ReferenceEvaluator(str(path)).run(None, {"input": x})
    return np.asarray(outputs[0])


def given(source: Path, x: Floats) -> Images:
    """`x` for everything, labelled with the fp32 graph's own answers: its accuracy is 1."""
    fixed = onnx.load(str(source)).graph.input[0].type.tensor_type.shape.dim[0].dim_value or len(x)
    rows = x[np.arange(fixed) % len(x)]
    labels = run(source, rows).argmax(axis=1)
    return Images(x, lambda: [rows], lambda: [(rows, labels)], Judge(right))


def right(logits: Floats, labels: Floats) -> Floats:
    hits: Floats = logits.argmax(axis=1) == labels
    return hits


def lower(source: Path, path: Path, precision: Precision, x: Floats | None = None, **rules: Any) -> CastGraph:
    """`Lowering.write` with `Rules(100, method minmax)` unless told otherwise."""
    x = images(64) if x is None else x
    options = {"max_accuracy_drop": 100.0, "calibration": Calibration("minmax"), **rules}
    return Lowering(source, given(source, x)).write(path, precision, Rules(**options))
