"""Build the compact network: the same calls over smaller parameters. The network given is left untouched."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.assembly import add_node, graph_module
from pipeline.surgery.copies import copy_modules, kept_results, modules_by_path, named_tensors, set_mode
from pipeline.surgery.cut import Cut
from pipeline.surgery.entries import Copies, cut_tensor


def rebuild(
    analysis: Analysis, cut: Cut, gained: tuple[str, ...] = (), weights: fx.GraphModule | None = None
) -> fx.GraphModule:
    """The compact network as a `torch.fx.GraphModule`; parameters keep their names and their requires_grad.

    `gained` names biases to add as zeros: those that a plan says were folded into. `weights` is a copy of the traced
    network, in another precision perhaps, to take the parameters from.
    """
    source = analysis.traced.module if weights is None else weights
    modules = modules_by_path(source)
    memo = kept_results(modules.values())
    tensors = _tensors(modules, cut)
    memo |= {id(old): new for old, new in tensors.values()}
    root = nn.Module()
    for child_name, child in source.named_children():
        root.add_module(child_name, copy_modules(child, memo))
    for name, (_, tensor) in tensors.items():
        if isinstance(tensor, nn.Parameter) and "." not in name:
            root.register_parameter(name, tensor)
        elif "." not in name:
            root.register_buffer(name, tensor, name not in source._non_persistent_buffers_set)
    added = _fold(cut, root) | _gain(analysis, root, gained)
    graph = _graph(analysis, cut, added)
    groups = {str(node.target): count for node, count in cut.groups.items() if node.op == "call_module"}
    for path, module in modules_by_path(root).items():
        refresh(module, groups.get(path))
    made_module = graph_module(root, graph, source.__class__.__name__)
    set_mode(made_module, source.training)
    return made_module


def _tensors(modules: dict[str, nn.Module], cut: Cut) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameters and buffers under their first names: the one there was, and what stays of it."""
    made: dict[str, tuple[Tensor, Tensor]] = {}
    seen, copies = set(), Copies()
    for name, tensor in named_tensors(modules):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        left = cut_tensor(tensor, name, cut, copies)
        parameter = isinstance(tensor, nn.Parameter)
        made[name] = (tensor, nn.Parameter(left, requires_grad=tensor.requires_grad) if parameter else left)
    copies.make()
    return made


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
        numbers = {n: analysis.env[n] for n in cut.numbers.get(node, ())}
        known = made | numbers if numbers else made
        args, kwargs = (fx.node.map_arg(given, known.__getitem__) for given in (node.args, node.kwargs))
        made[node] = new = add_node(graph, node.op, node.target, args, kwargs, node.name, node.type)
        new.meta = {key: value for key, value in node.meta.items() if key != "val"}
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
