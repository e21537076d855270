"""From an ONNX graph to the torch network: inputs at two sizes, every node in turn, outputs in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from export.onnx.graph import opset_of
from pipeline.models.onnx import constants
from pipeline.models.onnx.convert import (
    DTYPES,
    MAX_ELEMENTS,
    Call,
    Converter,
    Network,
    UnsupportedError,
    Value,
    reference,
    refusal,
)  # fmt: skip
from pipeline.models.onnx.file import read_model
from pipeline.models.onnx.operators import OPERATORS
from runtime.errors import UserError

BATCH, OTHER_BATCH, WIDER = 2, 5, 64  # two sizes of a batch, and what a free size of an image grows by
# What torch, NumPy and onnx raise on shapes and attributes that do not fit.
DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


def network_from_onnx(path: Path, image: tuple[int, ...] | None = None) -> Network:
    """The network of an ONNX file. UserError names the node and operator that cannot be followed.

    `image`: (C, H, W), the size to trace an input of 4 axes at whose sizes vary.
    """
    return network_from_model(read_model(path), path, image)


def network_from_model(
    model: onnx.ModelProto, path: Path, image: tuple[int, ...] | None = None, hold: Iterable[int] = ()
) -> Network:
    """The same of a model that was read; nodes `hold`, by index, are frozen: what they read stays whole.

    Where the file fixes the batch, and holds numbers that follow from it, no other batch is followed.
    """
    try:
        return _followed(model, path, image, hold, any_batch=True)
    except UserError:
        if not _fixed_batch(model):
            raise
        return _followed(model, path, image, hold, any_batch=False)


def _fixed_batch(model: onnx.ModelProto) -> bool:
    """Whether every input to feed has a number as its first size."""
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [v.type.tensor_type.shape.dim for v in model.graph.input if v.name not in weights]
    return bool(shapes) and all(dims and dims[0].dim_value > 0 for dims in shapes)


def _followed(
    model: onnx.ModelProto, path: Path, image: tuple[int, ...] | None, hold: Iterable[int], *, any_batch: bool
) -> Network:
    converter = Converter(model, opset_of(model))
    for tensor in model.graph.initializer:
        converter.values[tensor.name] = np.array(onnx.numpy_helper.to_array(tensor))
    example = _inputs(converter, path, image, any_batch)
    held = set(hold)
    for index, node in enumerate(model.graph.node):
        converter.index = index
        try:
            outputs = _outputs(Call(converter, node, index in held))
        except UnsupportedError as error:
            raise refusal(node, index, error) from None
        except DAMAGED as error:
            raise refusal(node, index, error) from None
        _store(converter, node, outputs)
    return _finished(converter, path, example)


def _store(converter: Converter, node: onnx.NodeProto, outputs: list[Value]) -> None:
    names = [name for name in node.output if name]
    for name, value in zip(names, outputs, strict=False):
        if name in converter.values:
            raise refusal(node, converter.index, ValueError(f"its output {name!r} is there already"))
        converter.values[name] = value


def _outputs(call: Call) -> list[Value]:
    if call.node.domain in ("", "ai.onnx") and (early := constants.folded(call) or constants.of_sizes(call)):
        return early
    row = OPERATORS.get(call.node.op_type) if call.node.domain in ("", "ai.onnx") else None
    if row is None:
        return reference(call, f"surgery does not know {call.node.op_type}")
    module, name = row.split(":")
    function: Callable[[Call], Any] = getattr(import_module(f"pipeline.models.onnx.operators.{module}"), name)
    try:
        outputs = function(call)
    except UnsupportedError as error:
        return reference(call, str(error))
    return outputs if isinstance(outputs, list) else [outputs]


def _inputs(converter: Converter, path: Path, image: tuple[int, ...] | None, any_batch: bool) -> tuple[Tensor, ...]:
    """A placeholder for each input to feed; an example of them."""
    weights, example, kinds = set(converter.values), [], set()
    for value in converter.model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        types = {onnx.helper.np_dtype_to_tensor_dtype(d): t for d, t in DTYPES.items()}
        if not value.type.HasField("tensor_type") or kind.elem_type not in types or not kind.HasField("shape"):
            raise UserError(f"{path}: the input {value.name} is no tensor of a known type and rank",
                            "tensors of floats, integers or booleans", "export it again")  # fmt: skip
        sizes, others = _sizes(path, value, image)
        batch = max(kind.shape.dim[0].dim_value, 0) if sizes else 0  # 0: it may vary
        if batch and not any_batch:
            sizes[0] = others[0] = batch
        largest = [max(batch, OTHER_BATCH), *map(max, sizes[1:], others[1:])]
        if not sizes or prod(largest) > MAX_ELEMENTS:
            raise UserError(f"{path}: the input {value.name} has the shape {[batch or BATCH, *sizes[1:]]}",
                            f"a batch of at most {MAX_ELEMENTS} numbers", "export it again")  # fmt: skip
        dtype = types[kind.elem_type]
        pair = [torch.empty(s, dtype=dtype, device="meta") for s in (sizes, others)]
        converter.placeholder(value.name, pair[0], pair[1])
        example.append(torch.zeros(sizes, dtype=dtype))
        kinds.add(batch or None)
    if not example or len(kinds) > 1:
        problem = "has no inputs" if not example else "has inputs of different batch sizes"
        raise UserError(f"{path} {problem}", "inputs whose first axis is one batch", "export it again")
    converter.batch = kinds.pop()
    return tuple(example)


def _sizes(path: Path, value: onnx.ValueInfoProto, image: tuple[int, ...] | None) -> tuple[list[int], list[int]]:
    """Two sizes of every axis of an input: those that may vary differ."""
    dims = value.type.tensor_type.shape.dim
    sizes, others = [BATCH], [OTHER_BATCH]
    for axis, dim in list(enumerate(dims))[1:]:
        if dim.HasField("dim_value") and dim.dim_value > 0:
            sizes.append(dim.dim_value)
            others.append(dim.dim_value)
        elif image is not None and len(dims) == len(image) + 1:
            sizes.append(image[axis - 1])
            others.append(image[axis - 1] + (WIDER if axis > 1 else 0))
        else:
            shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
            raise UserError(
                f"{path}: the input {value.name} has the shape {shape}",
                "a size for every axis but the batch",
                "add --input-shape C,H,W",
            )
    return (sizes, others) if len(dims) else ([], [])


def _finished(converter: Converter, path: Path, example: tuple[Tensor, ...]) -> Network:
    outputs = []
    for value in converter.model.graph.output:
        result = converter.values.get(value.name)
        if not isinstance(result, fx.Node):
            raise UserError(f"{path}: the output {value.name} does not depend on the inputs", "outputs that do",
                            "export it again")  # fmt: skip
        outputs.append(result)
    graph = converter.graph
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    module = fx.GraphModule(converter.root, graph, "OnnxNetwork")
    names = {name for name, _ in (*module.named_parameters(remove_duplicate=False),
                                  *module.named_buffers(remove_duplicate=False))}  # fmt: skip
    parameters = {name: source for name, source in converter.parameters.items() if name in names}
    arrays = {name: v for name, v in converter.values.items() if isinstance(v, np.ndarray) and v.dtype != object}
    sizes = frozenset(name for name, v in converter.values.items() if isinstance(v, np.ndarray) and v.dtype == object)
    nodes = {name: v for name, v in converter.values.items() if isinstance(v, fx.Node)}
    return Network(
        module.eval(), converter.model, example, parameters, arrays, sizes, converter.batch, converter.frozen, nodes
    )
