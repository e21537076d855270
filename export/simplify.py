"""onnxsim, taken only where ONNX Runtime finds the same values and the batch stays dynamic."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from export import graph
from export.files import replacing
from runtime.errors import UserError

BATCH_SIZES = (1, 5)


@dataclass(frozen=True)
class Simplified:
    """The graph to go on with; `reason` says why onnxsim's was refused, None where it was used.

    `max_abs_diff` is of the graph that was used: 0.0 for the original.
    """

    path: Path
    used: Literal["onnxsim", "original"]
    reason: str | None
    nodes_before: int
    nodes_after: int
    max_abs_diff: float


def simplify(source: Path, path: Path, *, max_abs_diff: float, samples: graph.Array) -> Simplified:
    """Writes `source` simplified by onnxsim to `path`, or `source` unchanged.

    The simplified graph is used if onnx.checker accepts it, its inputs and outputs have the same names, types and
    dimensions (fixed and dynamic alike), and ONNX Runtime's outputs differ by at most `max_abs_diff` at the batch sizes
    1 and 5 (the fixed one where the batch is fixed), on rows of `samples` (N, C, H, W) float32 and on noise.
    `UserError`: `source` is no ONNX file, does not run, or does not take the samples.
    """
    before = graph.read_graph(source)
    spec = graph.image_input(before, samples, source)
    probes = graph.probes(samples, BATCH_SIZES if spec.shape[0] is None else (spec.shape[0],))
    try:
        session = graph.open_graph(before)
        expected = [graph.run_graph(session, images) for images in probes]
    except graph.GraphError as error:
        raise UserError(f"ONNX Runtime fails on {source}: {error}", "a graph that runs", "export it again") from error
    after, reason = _onnxsim(before)
    difference = 0.0
    if after is not None:
        reason, difference = _refusal(before, after, probes, expected, max_abs_diff)
    if after is None or reason is not None:
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)
        return Simplified(path, "original", reason, len(before.graph.node), len(before.graph.node), 0.0)
    graph.write_graph(after, path)
    return Simplified(path, "onnxsim", None, len(before.graph.node), len(after.graph.node), difference)


def _onnxsim(model: onnx.ModelProto) -> tuple[onnx.ModelProto | None, str | None]:
    import onnxsim

    try:
        simplified, _ = onnxsim.simplify(model)
    except Exception as error:  # onnxsim passes on whatever its optimiser throws
        return None, f"onnxsim failed: {graph.first_line(error)}"
    assert isinstance(simplified, onnx.ModelProto)
    simplified.ClearField("metadata_props")  # onnxsim adds a log of what it did
    simplified.metadata_props.extend(model.metadata_props)
    return simplified, None


def _refusal(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    probes: list[graph.Array],
    expected: list[list[graph.Array]],
    max_abs_diff: float,
) -> tuple[str | None, float]:
    """Why `after` cannot stand for `before` (None if it can), and the largest difference of their outputs."""
    try:
        onnx.checker.check_model(after, full_check=True)
    except Exception as error:  # ValidationError or the shape inference's own, which share no base
        return f"onnx.checker refuses it: {graph.first_line(error)}", float("inf")
    changed = _changed_signature(before, after)
    if changed is not None:
        return changed, float("inf")
    worst = 0.0
    try:
        session = graph.open_graph(after)
        for images, outputs in zip(probes, expected, strict=True):
            difference = graph.worst_difference(graph.run_graph(session, images), outputs)
            if not difference <= max_abs_diff:
                return (
                    f"its outputs differ by {difference:.3g} at batch {len(images)}, over {max_abs_diff:g}",
                    difference,
                )
            worst = max(worst, difference)
    except graph.GraphError as error:
        return f"ONNX Runtime fails on it: {error}", float("inf")
    return None, worst


def _changed_signature(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
    """What changed in the inputs and outputs. A dimension that nobody had inferred may become known.

    Only an output's, not its batch, and only where every input dimension but the batch is fixed: then it cannot vary.
    """
    ins = graph.inputs_of(before), graph.inputs_of(after)
    outs = graph.outputs_of(before), graph.outputs_of(after)
    fixed = all(dim is not None for spec in ins[0] for dim in spec.shape[1:])
    for kind, was, now in (("inputs", *ins), ("outputs", *outs)):
        inferable = fixed and kind == "outputs"
        if len(was) != len(now) or not all(_same(a, b, inferable) for a, b in zip(was, now, strict=True)):
            return f"its {kind} changed from {_listed(was)} to {_listed(now)}"
    return None


def _same(was: graph.TensorSpec, now: graph.TensorSpec, inferable: bool) -> bool:
    if (was.name, was.dtype, len(was.shape)) != (now.name, now.dtype, len(now.shape)):
        return False
    pairs = enumerate(zip(was.shape, now.shape, strict=True))
    return all(a == b or (inferable and axis > 0 and a is None) for axis, (a, b) in pairs)


def _listed(specs: tuple[graph.TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs)
