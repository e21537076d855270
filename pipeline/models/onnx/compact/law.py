"""The law on files: the compact file answers what the original does, in ONNX Runtime and in float64 by onnx itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.onnx.graph import Array, Feeds, GraphError, first_line, open_graph, run_graph, worst_difference
from runtime.errors import UserError

TOLERANCE = {np.dtype(np.float16): 2e-2}  # of the largest output, in ONNX Runtime; others as float32
TOLERANCE_SINGLE, TOLERANCE_DOUBLE = 1e-4, 1e-6  # the second allows for weights that took up constants, in float32
TOLERANCE_HALF = 2e-3  # the same of weights in float16
REFERENCE_MACS = 200_000_000  # what onnx's evaluator does in seconds


@dataclass(frozen=True)
class FileLaw:
    """Largest differences over all outputs and `inputs`: in ONNX Runtime, absolute and over the largest output; in
    float64 by onnx's reference evaluator, over the largest output, or None and the reason."""

    inputs: tuple[str, ...]
    max_abs_diff: float
    max_rel_diff: float
    reference_rel_diff: float | None
    reference_skipped: str | None


def check_files(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Feeds], macs: int | None) -> FileLaw:
    """Hold the law on `feeds`, by name; UserError where it does not hold. `macs`: of one batch of the first feeds."""
    absolute = relative = 0.0
    try:
        sessions = open_graph(before), open_graph(after)
        for name, feed in feeds.items():
            expected, answer = (run_graph(session, feed) for session in sessions)
            tolerance = max(TOLERANCE.get(y.dtype, TOLERANCE_SINGLE) for y in expected)
            difference = worst_difference(answer, expected)
            share = _relative(answer, expected)
            if not share <= tolerance:
                raise _broken(f"by {share:.2g} of its largest output in ONNX Runtime on {name} inputs", tolerance)
            absolute, relative = max(absolute, difference), max(relative, share)
    except GraphError as error:
        raise UserError(
            f"ONNX Runtime does not run the graph: {error}", "a graph that runs", "export it again"
        ) from None
    double, skipped = _reference(before, after, next(iter(feeds.values())), macs)
    return FileLaw(tuple(feeds), absolute, relative, double, skipped)


def _relative(answer: list[Array], expected: list[Array]) -> float:
    """The worst difference of an output over its largest finite number."""
    worst = 0.0
    for a, b in zip(answer, expected, strict=True):
        finite = np.abs(b[np.isfinite(b)].astype(np.float64)) if b.dtype.kind in "fiu" else np.ones(1)
        scale = float(finite.max(initial=0.0)) or 1.0
        worst = max(worst, worst_difference([a], [b]) / scale)
    return worst


def _reference(
    before: onnx.ModelProto, after: onnx.ModelProto, feed: Feeds, macs: int | None
) -> tuple[float | None, str | None]:
    if macs is None or macs > REFERENCE_MACS:
        return (
            None,
            f"over {REFERENCE_MACS // 10**6} million multiply-accumulates, which onnx's evaluator takes long for",
        )
    wide = {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in feed.items()}
    try:
        expected, answer = (
            [np.asarray(y) for y in ReferenceEvaluator(in_double(model)).run(None, wide)] for model in (before, after)
        )
    except Exception as error:  # operators of the evaluator raise what they like on types they do not know
        return None, f"onnx's evaluator does not run the graph in float64: {first_line(error)}"
    difference = _relative(answer, expected)
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in before.graph.initializer)
    tolerance = TOLERANCE_HALF if half else TOLERANCE_DOUBLE
    if not difference <= tolerance:
        raise _broken(f"by {difference:.2g} of its largest output in float64", tolerance)
    return difference, None


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose floating-point weights, constants, casts, inputs and outputs are float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for tensor in [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.HasField("t"))]:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if (
                node.op_type == "Cast"
                and attribute.name == "to"
                and attribute.i in (TensorProto.FLOAT, TensorProto.FLOAT16)
            ):
                attribute.i = TensorProto.DOUBLE
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = onnx.helper.get_attribute_value(attribute)
                attribute.CopyFrom(
                    onnx.helper.make_attribute("value", numpy_helper.from_array(np.array(values, float)))
                )
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    return copy


def _widen(tensor: TensorProto) -> None:
    array = numpy_helper.to_array(tensor)
    if array.dtype in (np.float32, np.float16):
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))


def _broken(difference: str, tolerance: Any) -> UserError:
    return UserError(
        f"the compact file differs {difference}",
        f"at most {tolerance:g}",
        "nothing was written; report it with the file",
    )
