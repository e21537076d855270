"""Build the compact network: the same calls over smaller parameters. The network given is left untouched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.assembly import graph_module
from pipeline.surgery.copies import copy_modules, kept_results, set_mode
from pipeline.surgery.cut import Cut
from pipeline.surgery.labels import Ids

CACHE_BYTES = 1 << 18
LARGE = 1 << 18  # elements left of a tensor that are worth a second thread
Array = NDArray[Any]


def rebuild(
    analysis: Analysis, cut: Cut, gained: tuple[str, ...] = (), weights: fx.GraphModule | None = None
) -> fx.GraphModule:
    """The compact network as a `torch.fx.GraphModule`; parameters keep their names and their requires_grad.

    `gained` names biases to add as zeros: those that a plan says were folded into. `weights` is a copy of the traced
    network, in another precision perhaps, to take the parameters from.
    """
    source = analysis.traced.module if weights is None else weights
    memo = kept_results(source)
    tensors: dict[str, Tensor] = {}
    for name, tensor in [*source.named_parameters(), *source.named_buffers()]:
        made = cut_tensor(tensor, name, cut)
        tensors[name] = (
            nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
        )
        memo[id(tensor)] = tensors[name]
    root = nn.Module()
    for child_name, child in source.named_children():
        root.add_module(child_name, copy_modules(child, memo))
    for name, tensor in tensors.items():
        if "." not in name:
            root.register_parameter(name, tensor) if isinstance(tensor, nn.Parameter) else root.register_buffer(
                name, tensor
            )
    added = _fold(cut, root) | _gain(analysis, root, gained)
    graph = _graph(analysis, cut, added)
    groups = {str(node.target): count for node, count in cut.groups.items() if node.op == "call_module"}
    for path, module in root.named_modules():
        refresh(module, groups.get(path))
    made_module = graph_module(root, graph, source.__class__.__name__)
    set_mode(made_module, source.training)
    return made_module


def cut_tensor(tensor: Tensor, name: str, cut: Cut) -> Tensor:
    """The entries of one parameter that stay, in memory of their own."""
    tensor = tensor.detach()
    if name in cut.grouped:
        out_axis, outs, ins = cut.grouped[name]
        rows, columns = (outs, ins) if out_axis == 0 else (ins, outs)
        made = tensor.new_empty((rows.size, columns.shape[1], *tensor.shape[2:]))
        blocks = zip(tensor.chunk(len(rows)), made.chunk(len(rows)), rows, columns, strict=True)
        for block, target, i, j in blocks:
            _take(block, {0: i, 1: j}, target)
        return made
    indices = {}
    for axis, width in enumerate(tensor.shape):
        index = cut.slices.get((name, axis))
        if index is not None and (len(index) < width or (np.diff(index) != 1).any()):
            indices[axis] = index
    if not indices:
        return tensor.clone()
    made = tensor.new_empty([len(indices.get(axis, range(width))) for axis, width in enumerate(tensor.shape)])
    _take(tensor, indices, made)
    return made


def _take(tensor: Tensor, indices: dict[int, Ids], target: Tensor) -> None:
    """Entries `indices[axis]` along each axis. On the CPU NumPy copies, for its one thread is faster than several that
    wait for each other, into memory from torch, for NumPy asks the system for huge pages, which are slow to come by."""
    *first, (last, index) = indices.items()
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64):
        for axis, wanted in indices.items():
            tensor = tensor.index_select(axis, torch.as_tensor(wanted, device=tensor.device))
        target.copy_(tensor)
        return
    source, to = tensor.numpy(), target.numpy()
    if list(indices) == [0, 1]:
        _take_both(source, indices[0], index, to)
        return
    for axis, wanted in first:
        source = source.take(wanted, axis)
    source.take(index, last, out=to, mode="clip")


def _take_both(source: Array, rows: Ids, columns: Ids, to: Array) -> None:
    """Entries at rows and columns. Large weights are halved between two threads, for NumPy copies without Python's
    lock. No result is made in the second thread: memory it gives back is of no use to the first."""
    half = len(rows) // 2 if to.size >= LARGE else 0
    if not half:
        _take_rows(source, rows, columns, to)
        return
    with ThreadPoolExecutor(1) as second:
        helped = second.submit(_take_rows, source, rows[half:], columns, to[half:])
        _take_rows(source, rows[:half], columns, to[:half])
        helped.result()


def _take_rows(source: Array, rows: Ids, columns: Ids, to: Array) -> None:
    """Rows lose their columns while they lie in the cache."""
    at_once = max(1, CACHE_BYTES // source[0].nbytes)
    lines = np.empty((min(at_once, len(to)), *source.shape[1:]), source.dtype)
    for i in range(0, len(to), at_once):
        some = rows[i : i + at_once]
        whole = source.take(some, 0, out=lines[: len(some)], mode="clip")
        whole.take(columns, 1, out=to[i : i + at_once], mode="clip")


def _fold(cut: Cut, root: nn.Module) -> dict[fx.Node, str]:
    """Put folded constants into biases; {call: name of the bias it gained}."""
    added = {}
    for weight, (node, bias, delta) in cut.folds.items():
        owner = root.get_submodule(weight.rpartition(".")[0])
        like = attrgetter(weight)(root)
        change = torch.as_tensor(delta).to(dtype=like.dtype, device=like.device)
        if bias is not None:
            with torch.no_grad():
                known = attrgetter(bias)(root)
                known.copy_((known.double() + torch.as_tensor(delta, device=known.device)).to(known.dtype))
        else:
            owner._parameters.pop("bias", None)
            owner.register_parameter("bias", nn.Parameter(change, requires_grad=like.requires_grad))
            added[node] = weight.removesuffix("weight") + "bias"
    return added


def _gain(analysis: Analysis, root: nn.Module, gained: tuple[str, ...]) -> dict[fx.Node, str]:
    added = {}
    for layer in analysis.layers:
        bias = layer.weight.removesuffix("weight") + "bias"
        if bias in gained:
            owner, like = root.get_submodule(bias.rpartition(".")[0]), attrgetter(layer.weight)(root)
            owner._parameters.pop("bias", None)
            owner.register_parameter("bias", nn.Parameter(like.new_zeros(like.shape[layer.axis])))
            added[layer.node] = bias
    return added


def refresh(module: nn.Module, groups: int | None) -> None:
    """Bring a module's own record of its widths in line with its parameters."""
    m: Any = module
    if groups is not None:
        m.groups = groups
    if isinstance(m, nn.modules.conv._ConvNd):
        ins, outs = m.weight.shape[1] * m.groups, m.weight.shape[0]
        if m.transposed:
            ins, outs = m.weight.shape[0], m.weight.shape[1] * m.groups
        m.in_channels, m.out_channels = ins, outs
    elif type(m) is nn.Linear:
        m.out_features, m.in_features = m.weight.shape
    elif isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
        m.num_features = len(m.running_mean)
    elif isinstance(m, nn.modules.instancenorm._InstanceNorm) and m.weight is not None:
        m.num_features = len(m.weight)
    elif type(m) is nn.PReLU:
        m.num_parameters = len(m.weight)


def _graph(analysis: Analysis, cut: Cut, added: dict[fx.Node, str]) -> fx.Graph:
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {}

    def argument(x: Any) -> Any:
        if isinstance(x, fx.Node):
            return made[x]
        if isinstance(x, str) and x.startswith("parameter:"):
            return graph.get_attr(x.removeprefix("parameter:"))
        if isinstance(x, tuple) and x and x[0] == "size:":
            return graph.call_method("size", (made[x[1]], x[2]))
        if isinstance(x, tuple) and x and x[0] == "call:":
            return graph.call_function(x[1], argument(x[2]))
        if isinstance(x, tuple | list):
            return type(x)(argument(v) for v in x)
        if isinstance(x, slice):
            return slice(argument(x.start), argument(x.stop), argument(x.step))
        if isinstance(x, dict):
            return {k: argument(v) for k, v in x.items()}
        return x

    for node in analysis.traced.module.graph.nodes:
        if node in cut.calls:
            target, args, kwargs = cut.calls[node]
            given, more = argument(args), argument(dict(kwargs))
            made[node] = graph.create_node("call_function", target, given, more, name=node.name)
            continue
        known = made | {n: analysis.env[n] for n in cut.numbers.get(node, ())}
        new = graph.node_copy(node, known.__getitem__)
        new.meta.pop("val", None)
        made[node] = new
        if node.op == "call_function" and node in cut.groups:
            _set_argument(new, "groups", 6, cut.groups[node])
        if node.op == "call_function" and node in added:
            with graph.inserting_before(new):
                _set_argument(new, "bias", 2, graph.get_attr(added[node]))
    return graph


def _set_argument(node: fx.Node, name: str, position: int, value: Any) -> None:
    """Set an argument of a functional convolution or linear map."""
    if len(node.args) > position:
        args = list(node.args)
        args[position] = value
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, name: value}
