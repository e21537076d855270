"""A cut written back into the ONNX graph it came from: other weights and sizes, the same nodes, names and metadata.

The compact torch network makes the same calls in the same order as the one read from the file, so each of its calls
belongs to a node. What stays as it was in torch stays as it was in the file.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp

from pipeline.models.onnx.compact.calls import ONES, PATCHES, SELECTION, add_ones, resized
from pipeline.models.onnx.compact.edit import Edit, HeldError
from pipeline.models.onnx.convert import SOURCE, VAL, Array, Network, Parameter


def rewritten(network: Network, compact: fx.GraphModule) -> onnx.ModelProto:
    """The compact ONNX model. Raises HeldError with the node that the file has no way to write down."""
    edit = Edit(network.model)
    _constants_of_shapes(network, edit)
    if any(node.op_type == "Resize" for node in edit.nodes):
        ShapeProp(compact).propagate(*network.example)
    for mine, theirs in _pairs(network.module.graph, compact.graph):
        _patch(edit, network, compact, mine, theirs)
    _weights(network, compact, edit)
    return edit.finished()


def _pairs(before: fx.Graph, after: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Calls of both graphs, one by one; what surgery put before a call is no pair: selections of channels, and channels
    of ones."""
    theirs = iter([n for n in after.nodes if n.op.startswith("call_")])
    for mine in [n for n in before.nodes if n.op.startswith("call_")]:
        other = next(theirs)
        while _name(other) == SELECTION and mine.target in (torch.split, operator.getitem):
            other = next(theirs)
        if _name(other) == ONES:
            other = next(theirs)
        assert mine.op == other.op or other.op == "call_function", f"{mine.format_node()} became {other.format_node()}"
        assert mine.op != "call_module" or mine.target == other.target, f"{mine.target} became {other.target}"
        yield mine, other


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _patch(edit: Edit, network: Network, compact: fx.GraphModule, mine: fx.Node, theirs: fx.Node) -> None:
    index = mine.meta[SOURCE]
    entering = theirs.args[0] if theirs.args else None
    if isinstance(entering, fx.Node) and _name(entering) == ONES:
        add_ones(edit, index, mine.meta[VAL].dim())
    if mine.op == "call_module":
        groups = getattr(compact.get_submodule(str(theirs.target)), "groups", None)
        if groups is not None and groups != edit.attribute(index, "group", 1):
            edit.set_attribute(index, "group", groups)
        return
    name = _name(theirs)
    if name == "interpolate":
        resized(edit, network, index, mine, theirs)
    patch = PATCHES.get((edit.nodes[index].op_type, name))
    if mine.op == theirs.op and mine.target == theirs.target and (patch is None or _same(mine, theirs)):
        return
    if patch is None:
        raise HeldError(index, f"{edit.nodes[index].op_type} as {name}")
    patch(edit, network, index, mine, theirs)


def _same(mine: fx.Node, theirs: fx.Node) -> bool:
    """The same second argument (the sizes of a reshape, the parts of a split, ...) but for nodes in it."""

    def outline(node: fx.Node) -> str:
        return repr(fx.node.map_aggregate(node.args[1], lambda v: "*" if isinstance(v, fx.Node) else v))

    return outline(mine) == outline(theirs)


def _constants_of_shapes(network: Network, edit: Edit) -> None:
    """Numbers that the graph reads off the shapes of tensors become what they were: widths may be others now."""
    graph = network.model.graph
    off_shapes: set[str] = set()
    for node in graph.node:
        if node.op_type in ("Shape", "Size") or off_shapes & set(node.input):
            off_shapes |= {name for name in node.output if name in network.constants or name in network.sizes}
    for index, node in enumerate(graph.node):
        if not all(name in network.constants for name in node.output):
            for slot, name in enumerate(node.input):
                if name in off_shapes and name in network.constants:
                    edit.set_input(index, slot, edit.new(name, network.constants[name]))


def _weights(network: Network, compact: fx.GraphModule, edit: Edit) -> None:
    """Every weight that changed, for those that read it; under its own name where all its readers agree."""
    readers = _readers(network.module.graph)
    tensors = dict(compact.named_parameters(remove_duplicate=False)) | dict(
        compact.named_buffers(remove_duplicate=False)
    )
    changed: dict[str, list[tuple[set[int], Array]]] = {}
    for name, tensor in tensors.items():
        array = np.array(tensor.detach().numpy(), order="C")
        source = network.parameters.get(name)
        if source is None:
            edit.add_bias(int(name[1:].partition("_")[0]), array)
            continue
        before = network.constants[source.value]
        after = _laid_out(array, source, before)
        if after.shape != before.shape or after.tobytes() != before.tobytes():
            changed.setdefault(source.value, []).append((readers.get(name) or {int(name[1:].partition("_")[0])}, after))
    for value, versions in changed.items():
        edit.replace(value, versions)


def _readers(graph: fx.Graph) -> dict[str, set[int]]:
    """ONNX nodes that read a constant fetched by name."""
    return {str(n.target): {u.meta[SOURCE] for u in n.users} for n in graph.nodes if n.op == "get_attr"}


def _laid_out(array: Array, source: Parameter, before: Array) -> Array:
    """A parameter's values as the file lays them out."""
    if source.layout == "transposed":
        return np.ascontiguousarray(array.T)
    if source.layout == "flat":
        return array.reshape([len(array) if n > 1 else 1 for n in before.shape])
    return array


def parameters_of(model: onnx.ModelProto) -> int:
    """Numbers in all floating-point weights."""
    arrays = [t for t in model.graph.initializer if numpy_helper.to_array(t).dtype.kind == "f"]
    return sum(int(np.prod(t.dims)) for t in arrays)
