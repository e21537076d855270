"""An ONNX file from anywhere: read within bounds, its external data from its own folder alone."""

from __future__ import annotations

import copy
import os
import stat
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.onnx.graph import MAX_BYTES, first_line, opset_of
from pipeline.models.onnx.operators import RANDOM, REFUSED
from runtime.errors import UserError
from runtime.files import read_bounded

OPSETS = range(9, 24)
MAX_NODES = 100_000
BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.DOUBLE: 64, TensorProto.INT64: 64,
    TensorProto.INT32: 32, TensorProto.INT16: 16, TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.BOOL: 8,
}  # fmt: skip
REMEDY = "export it again"


def read_model(path: Path) -> onnx.ModelProto:
    """The model with all weights in it, nodes in order, and local functions and other names of weights resolved.
    UserError: it is none that can be followed."""
    try:
        data = read_bounded(path, min(MAX_BYTES, path.stat().st_size))  # which makes room for as much as it may read
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "an ONNX file", "check the path") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no public common base
        raise UserError(f"{path} is no ONNX file ({first_line(error)})", "an ONNX file", REMEDY) from None
    _check_head(model, path)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            _take_external(tensor, path)
    _check_tensors(model, path)
    _sort(model.graph)
    try:
        onnx.checker.check_model(model)
        return _without_aliases(_inlined(model))
    except Exception as error:  # ValidationError, and what the inliner raises, which share no base
        raise UserError(f"{path} is not valid ONNX: {first_line(error)}", "a valid graph", REMEDY) from None


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes after those that they read, where a converter left them in another order, and it can be."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    reads = [{makers[name] for name in node.input if name in makers} for node in graph.node]
    if all(max(before, default=-1) < index for index, before in enumerate(reads)):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(reads))).static_order())
    except CycleError:
        return  # onnx's checker names the node
    nodes = [copy.deepcopy(graph.node[index]) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _without_aliases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Readers of an Identity of a weight read the weight: torch's exporter writes one for each further use of it."""
    graph = model.graph
    weights, outputs = {tensor.name for tensor in graph.initializer}, {value.name for value in graph.output}
    aliases: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = aliases.get(name, name)
        if node.op_type == "Identity" and node.input[0] in weights and node.output[0] not in outputs:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(copy.deepcopy(node))
    if aliases:
        del graph.node[:]
        graph.node.extend(nodes)
    return model


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    if not model.functions:
        return model
    from onnx import inliner

    return inliner.inline_local_functions(model)


def _check_head(model: onnx.ModelProto, path: Path) -> None:
    graph, opset = model.graph, opset_of(model)
    if not graph.node or not graph.output:
        raise UserError(f"{path} has no graph", "an ONNX file with nodes and outputs", REMEDY)
    if opset not in OPSETS:
        raise UserError(
            f"{path} is of operator set {opset}",
            f"{OPSETS.start} to {OPSETS.stop - 1}",
            "convert it with onnx.version_converter",
        )
    if len(graph.node) > MAX_NODES:
        raise UserError(f"{path} has {len(graph.node)} nodes", f"at most {MAX_NODES}", REMEDY)
    if graph.sparse_initializer:
        raise UserError(f"{path} has sparse weights", "dense ones", "export it with dense weights")
    if model.training_info:
        raise UserError(f"{path} is a graph for training", "one for inference", "export it for inference")
    for index, node in enumerate(graph.node):
        _check_operator(node, index, path)


def _check_operator(node: onnx.NodeProto, index: int, path: Path) -> None:
    where = f"{path}: node {node.name or index} is a {node.op_type}"
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        raise UserError(
            f"{where}, which holds a graph of its own", "no control flow", "export the graph without branches and loops"
        )
    if node.op_type in REFUSED and node.domain in ("", "ai.onnx", "com.microsoft"):
        raise UserError(
            f"{where}: the graph is quantised", "one in floating point", "shrink the graph it was quantised from"
        )
    if node.op_type in RANDOM and node.domain in ("", "ai.onnx"):
        raise UserError(f"{where}, which draws random numbers", "a function of the inputs alone", REMEDY)


def _take_external(tensor: TensorProto, path: Path) -> None:
    """Put a weight's bytes, from a plain file in the model's own folder, into the tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, shown = entries.get("location", ""), f"{path}: the weight {tensor.name}"
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve(strict=True)
        inside = file.is_relative_to(folder) and not Path(location).is_absolute() and ".." not in Path(location).parts
        plain = not any((folder / part).is_symlink() for part in (Path(location), *Path(location).parents))
        if not (location and inside and plain and stat.S_ISREG(file.stat().st_mode)):
            raise UserError(f"{shown} lies in {location!r}", "a plain file beside the model", "save it there")
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        size = file.stat().st_size
        length = size - offset if length < 0 else length
        if not 0 <= offset <= offset + length <= size or length != _bytes_of(tensor):
            raise UserError(f"{shown} takes bytes {offset} to {offset + length} of {size} in {location!r}",
                            f"{_bytes_of(tensor)} bytes that are there", REMEDY)  # fmt: skip
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
    except (OSError, ValueError) as error:
        raise UserError(f"{shown} cannot be read from {location!r} ({first_line(error)})", "its bytes beside the model",
                        "put both files into one folder") from None  # fmt: skip
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _bytes_of(tensor: TensorProto) -> int:
    return int(prod(tensor.dims)) * BITS.get(tensor.data_type, 0) // 8


def _check_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Weights have the bytes that their shapes claim, before anybody makes room for them."""
    names = [t.name for t in model.graph.initializer]
    if len(set(names)) < len(names):
        raise UserError(f"{path} has two weights of one name", "a name for each", REMEDY)
    attributes = [a.t for n in model.graph.node for a in n.attribute if a.type == onnx.AttributeProto.TENSOR]
    for tensor in (*model.graph.initializer, *attributes):
        if tensor.data_type not in BITS:
            kind = (
                TensorProto.DataType.Name(tensor.data_type)
                if tensor.data_type in TensorProto.DataType.values()
                else "?"
            )
            raise UserError(f"{path}: the tensor {tensor.name} is of type {kind}", "floats, integers or booleans",
                            "export it in float32")  # fmt: skip
        if any(size < 0 for size in tensor.dims) or prod(tensor.dims) > MAX_BYTES:
            raise UserError(f"{path}: the tensor {tensor.name} has the shape {list(tensor.dims)[:8]}",
                            "a tensor of at most 2 GiB", REMEDY)  # fmt: skip
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UserError(
                f"{path}: the tensor {tensor.name} of a node lies in another file", "it in the node", REMEDY
            )
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except Exception as error:  # whatever onnx meets in damaged bytes
            raise UserError(
                f"{path}: the tensor {tensor.name} is damaged ({first_line(error)})", "its bytes", REMEDY
            ) from None
        if values.dtype.kind == "f" and bool(np.isnan(values).any()):
            raise UserError(f"{path}: the weight {tensor.name} holds NaN", "numbers", "train or export it again")
