"""A torch network as one ONNX file with a dynamic batch, proven by its values.

Uses torch's exporter on `torch.export`. What it notes about the source code (stack traces with file names) is taken
out of the graph, so the file says nothing about the machine that wrote it.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export import graph
from runtime.errors import UserError

BATCH_SIZES = (1, 3, 8)


@dataclass(frozen=True)
class OnnxGraph:
    """An exported graph; `max_abs_diff` is the largest difference from torch's logits over `batch_sizes`."""

    path: Path
    opset: int
    nodes: int
    bytes: int
    max_abs_diff: float
    batch_sizes: tuple[int, ...]


def onnx_from_torch(
    model: nn.Module, example: Tensor, path: Path, *, opset: int, max_abs_diff: float, metadata: dict[str, str]
) -> OnnxGraph:
    """Writes `model` in eval mode to `path`: float32 input `input` (batch, C, H, W), output `logits` (batch, ...).

    `example` is (B, C, H, W) float32 on the model's device, B >= 1; its rows, taken in turn, are the samples whose
    logits ONNX Runtime must reproduce within `max_abs_diff` at the batch sizes 1, 3 and 8. `metadata` goes into the
    file's metadata_props. The module's modes are as before on return. `UserError`: torch cannot export the network
    (with the exporter's reason), the batch does not stay dynamic, the values differ, or the file would exceed 2 GiB.
    """
    assert example.dim() == 4 and example.dtype == torch.float32 and len(example) > 0
    graph.check_size(sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())))
    with _eval_mode(model), torch.no_grad():
        expected = {size: _logits(model, _rows(example, size)) for size in BATCH_SIZES}
        exported = _export(model, _rows(example, 2), opset)
    _tidy(exported, metadata)
    _check_form(exported, opset)
    worst = _check_values(exported, example, expected, max_abs_diff)
    size = graph.write_graph(exported, path)
    return OnnxGraph(path, opset, len(exported.graph.node), size, worst, BATCH_SIZES)


def _rows(example: Tensor, count: int) -> Tensor:
    return example[torch.arange(count, device=example.device) % len(example)]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own mode back (some may be frozen in eval within train)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _logits(model: nn.Module, images: Tensor) -> graph.Array:
    try:
        logits = model(images)
    except Exception as error:  # whatever the user's own forward raises
        raise UserError(
            f"the network fails on a batch of {len(images)}: {type(error).__name__}: {graph.first_line(error)}",
            "a network that takes any batch size",
            "do not fix the batch size in forward()",
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() == 0 or len(logits) != len(images):
        found = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"the network returns {found} for a batch of {len(images)}",
            "one tensor of logits with a row per image",
            "wrap the network so that forward() returns the logits alone",
        )
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the network's own logits are not finite", "finite logits", "check its weights and its input")
    return np.asarray(logits.detach().cpu().numpy(), np.float32)


def _export(model: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    """The exporter's ModelProto. What torch writes to stderr is shown after a success; a failure shows its reason.

    On a failure torch dumps the traced program there, by print as well as by its loggers.
    """
    said = io.StringIO()
    with redirect_stderr(said), warnings.catch_warnings():
        # torch 2.11's own use of a class that torch deprecates, in torch.export's decompositions
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=opset,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
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


def _tidy(model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Drops what the exporter notes about source files, and sets the file's own metadata."""
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
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)


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


def _check_values(
    model: onnx.ModelProto, example: Tensor, expected: dict[int, graph.Array], max_abs_diff: float
) -> float:
    session = graph.open_graph(model)
    worst = 0.0
    for size, logits in expected.items():
        images = np.asarray(_rows(example, size).detach().cpu().numpy())
        try:
            difference = graph.worst_difference(graph.run_graph(session, images), [logits])
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
