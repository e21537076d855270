"""A simplified graph, taken only where ONNX Runtime finds the same values and the axes stay as they were.

A ladder: onnxsim, then onnxslim where that is installed, then the graph as it is.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx

from export.onnx import graph
from runtime.errors import UserError
from runtime.files import replacing

BATCH_SIZES = (1, 5)


@dataclass(frozen=True)
class Simplified:
    """The graph to go on with; `refused` has each simplifier that was tried before it, with the reason against it.

    `max_abs_diff` is of the graph that was used: 0.0 for the original.
    """

    path: Path
    used: Literal["onnxsim", "onnxslim", "original"]
    nodes_before: int
    nodes_after: int
    max_abs_diff: float
    refused: dict[str, str] = field(default_factory=dict)


def simplify(
    source: Path, path: Path, *, max_abs_diff: float, samples: graph.Array | graph.Feeds, tools: tuple[str, ...] = ()
) -> Simplified:
    """Writes `source` to `path` as the first of `tools` simplifies it that passes, or unchanged; () stands for all.

    A graph passes if onnx.checker accepts it, its inputs and outputs have the same names, types and dimensions (fixed
    and dynamic alike), and ONNX Runtime's outputs differ by at most `max_abs_diff` at the batch sizes 1 and 5 (the
    fixed one where the batch is fixed), on rows of `samples` (N, ...) and on noise. `UserError`: `source` is no ONNX
    file, does not run, or does not take the samples.
    """
    before = graph.read_graph(source)
    feeds = graph.feeds_of(before, samples, source)
    fixed = graph.fixed_batch(before)
    probes = graph.probes(feeds, BATCH_SIZES if fixed is None else (fixed,))
    try:
        session = graph.open_graph(before)
        expected = [graph.run_graph(session, probe) for probe in probes]
    except graph.GraphError as error:
        raise UserError(f"ONNX Runtime fails on {source}: {error}", "a graph that runs", "export it again") from error
    nodes = len(before.graph.node)
    refused: dict[str, str] = {}
    for name in tools or TOOLS:
        after, reason = _simplified(name, before)
        if after is not None:
            reason, difference = _refusal(before, after, probes, expected, max_abs_diff)
            if reason is None:
                graph.write_graph(after, path)
                return Simplified(path, TOOLS[name].used, nodes, len(after.graph.node), difference, refused)
        refused[name] = reason or ""
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
    return Simplified(path, "original", nodes, nodes, 0.0, refused)


def _onnxsim(model: onnx.ModelProto) -> object:
    import onnxsim

    return onnxsim.simplify(model)[0]


def _onnxslim(model: onnx.ModelProto) -> object:
    import onnxslim

    return onnxslim.slim(model)


@dataclass(frozen=True)
class Tool:
    """One rung: `used` is its name in a `Simplified`."""

    used: Literal["onnxsim", "onnxslim"]
    run: Callable[[onnx.ModelProto], object]


TOOLS = {"onnxsim": Tool("onnxsim", _onnxsim), "onnxslim": Tool("onnxslim", _onnxslim)}


def _simplified(name: str, model: onnx.ModelProto) -> tuple[onnx.ModelProto | None, str | None]:
    try:
        simplified = TOOLS[name].run(copy.deepcopy(model))
    except ImportError as error:
        return None, f"{name} is not installed ({graph.first_line(error)})"
    except Exception as error:  # the simplifiers pass on whatever they run into
        return None, f"{name} failed: {graph.first_line(error)}"
    if not isinstance(simplified, onnx.ModelProto):
        return None, f"{name} returned a {type(simplified).__name__}"
    simplified.ClearField("metadata_props")  # onnxsim adds a log of what it did
    simplified.metadata_props.extend(model.metadata_props)
    return simplified, None


def _refusal(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    probes: list[graph.Feeds],
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
        for feeds, outputs in zip(probes, expected, strict=True):
            difference = graph.worst_difference(graph.run_graph(session, feeds), outputs)
            if not difference <= max_abs_diff:
                batch = graph.batch_of(feeds)
                return f"its outputs differ by {difference:.3g} at batch {batch}, over {max_abs_diff:g}", difference
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
            return f"its {kind} changed from {graph.listing(was)} to {graph.listing(now)}"
    return None


def _same(was: graph.TensorSpec, now: graph.TensorSpec, inferable: bool) -> bool:
    if (was.name, was.dtype, len(was.shape)) != (now.name, now.dtype, len(now.shape)):
        return False
    pairs = enumerate(zip(was.shape, now.shape, strict=True))
    return all(a == b or (inferable and axis > 0 and a is None) for axis, (a, b) in pairs)
