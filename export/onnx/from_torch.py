"""A torch network as one ONNX file with a dynamic batch, proven by its values.

Uses torch's exporter on `torch.export`. What it notes about the source code (stack traces with file names) is taken
out of the graph, so the file says nothing about the machine that wrote it.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.onnx import graph
from export.onnx.signature import Example, eval_mode, inputs_named, outputs_of, rows
from runtime.errors import UserError

BATCH_SIZES = (1, 3, 8)
OPSETS = (18, 20, 22)
"""Tried in turn for `auto`: most readers know the oldest that the exporter writes; 20 brought Gelu and AffineGrid, 22
bfloat16 convolutions."""


@dataclass(frozen=True)
class OnnxGraph:
    """An exported graph; `max_abs_diff` is the largest difference from torch's outputs over `batch_sizes`.

    `refused`: operator sets that `auto` tried before `opset`, each with the reason against it.
    """

    path: Path
    opset: int
    nodes: int
    bytes: int
    max_abs_diff: float
    batch_sizes: tuple[int, ...]
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("logits",)
    refused: dict[str, str] = field(default_factory=dict)


def onnx_from_torch(
    model: nn.Module,
    example: Example,
    path: Path,
    *,
    opset: int | Literal["auto"],
    max_abs_diff: float,
    metadata: dict[str, str],
) -> OnnxGraph:
    """Writes `model` in eval mode to `path`, the first axis of every input and output a dynamic batch.

    `example` is one tensor (B, ...) on the model's device, B >= 1, or a tuple of them; its rows, taken in turn, are the
    samples whose outputs ONNX Runtime must reproduce within `max_abs_diff` at the batch sizes 1, 3 and 8. One input is
    called `input` and one output `logits`; several have the network's own names (`signature.py`). `opset` auto is
    the first of 18, 20 and 22 that passes. `metadata` goes into the file's metadata_props. The module's modes are as
    before on return. `UserError`: torch cannot export the network (with its reason), the batch does not stay
    dynamic, the values differ, or the file would exceed 2 GiB.
    """
    inputs = inputs_named(model, example)
    assert all(value.dim() > 0 and len(value) > 0 for value in inputs.values())
    graph.check_size(sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())))
    with eval_mode(model), torch.no_grad():
        samples = {size: {name: rows(value, size) for name, value in inputs.items()} for size in BATCH_SIZES}
        expected = {size: outputs_of(model, feeds) for size, feeds in samples.items()}
        pair = {name: rows(value, 2) for name, value in inputs.items()}
        names = tuple(expected[1])
        exported, worst, refused = _first_that_passes(model, pair, names, opset, samples, expected, max_abs_diff)
    for key, value in sorted(metadata.items()):
        exported.metadata_props.add(key=key, value=value)
    size = graph.write_graph(exported, path)
    counts = graph.opset_of(exported), len(exported.graph.node), size
    return OnnxGraph(path, *counts, worst, BATCH_SIZES, tuple(inputs), names, refused)


Samples = Mapping[int, Mapping[str, Tensor]]
Expected = Mapping[int, Mapping[str, graph.Array]]


def _first_that_passes(
    model: nn.Module,
    pair: dict[str, Tensor],
    names: tuple[str, ...],
    opset: int | Literal["auto"],
    samples: Samples,
    expected: Expected,
    max_abs_diff: float,
) -> tuple[onnx.ModelProto, float, dict[str, str]]:
    """The graph, its worst difference, and the operator sets refused before. Where all are, the first's error."""
    refused: dict[str, UserError] = {}
    for version in OPSETS if opset == "auto" else (opset,):
        try:
            exported = _export(model, pair, names, version)
            _tidy(exported)
            _check_form(exported, version)
            worst = _check_values(exported, samples, expected, max_abs_diff)
        except UserError as error:
            refused[str(version)] = error
        else:
            return exported, worst, {number: error.found for number, error in refused.items()}
    raise next(iter(refused.values()))


def _export(model: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...], opset: int) -> onnx.ModelProto:
    """The exporter's ModelProto. What torch writes to stderr is shown after a success; a failure shows its reason.

    On a failure torch dumps the traced program there, by print as well as by its loggers.
    """
    said = io.StringIO()
    batch = torch.export.Dim("batch", min=1)
    with redirect_stderr(said), warnings.catch_warnings():
        # torch 2.11's own use of a class that torch deprecates, in torch.export's decompositions
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        # said of every input but the first: they have the batch in common
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        try:
            program = torch.onnx.export(
                model,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: batch} for _ in inputs),
            )
        except Exception as error:  # the exporter passes on whatever tracing the user's forward raises
            raise UserError(
                f"torch cannot export the network: {_reason(error)}",
                "a network that torch.export traces with a dynamic batch",
                "rewrite the part of forward() that the reason names",
            ) from error
        assert program is not None
        exported = program.model_proto
        if graph.opset_of(exported) != opset:
            raise UserError(
                f"the exporter wrote operator set {graph.opset_of(exported)}",
                f"{opset} as asked",
                "ask for 18 or later",
            )
    sys.stderr.write(said.getvalue())
    return exported


def _reason(error: BaseException) -> str:
    """Type and first line of the first cause: the exporter wraps it in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {graph.first_line(error)}"


def _tidy(model: onnx.ModelProto) -> None:
    """Drops what the exporter notes about source files."""
    for items in (model.graph.node, model.graph.value_info, model.graph.initializer):
        for item in items:
            item.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    for function in model.functions:
        function.ClearField("metadata_props")
        for node in function.node:
            node.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")


def _check_form(model: onnx.ModelProto, opset: int) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError or the shape inference's own, which share no base
        raise UserError(
            f"the exported graph is not valid ONNX: {graph.first_line(error)}",
            "a graph that onnx.checker accepts",
            f"try another operator set than {opset}",
        ) from error
    for spec in (*graph.inputs_of(model), *graph.outputs_of(model)):
        if spec.shape[0] is not None:
            raise UserError(
                f"the batch of {spec.name!r} is fixed at {spec.shape[0]} in the exported graph",
                "a dynamic batch",
                "do not fix the batch size in forward()",
            )


def _check_values(model: onnx.ModelProto, samples: Samples, expected: Expected, max_abs_diff: float) -> float:
    worst = 0.0
    try:
        session = graph.open_graph(model)
    except graph.GraphError as error:
        raise UserError(
            f"ONNX Runtime does not load the exported graph: {error}",
            "a graph that runs",
            "export another operator set",
        ) from error
    for size, outputs in expected.items():
        feeds = {name: np.asarray(value.detach().cpu().numpy()) for name, value in samples[size].items()}
        try:
            difference = graph.worst_difference(graph.run_graph(session, feeds), list(outputs.values()))
        except graph.GraphError as error:
            raise UserError(
                f"ONNX Runtime fails on the exported graph at batch {size}: {error}",
                "a run",
                "export another operator set",
            ) from error
        if not difference <= max_abs_diff:
            raise UserError(
                f"the exported graph's logits differ from torch's by {difference:.3g} at batch {size}",
                f"at most {max_abs_diff:g}",
                "raise onnx.max_abs_diff if the logits are that large, else simplify the network's forward()",
            )
        worst = max(worst, difference)
    return worst
