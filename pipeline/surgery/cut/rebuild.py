"""Build the compact network: the same calls over smaller parameters. The network given is left untouched."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.slices import Copies, cut_tensor
from pipeline.surgery.rules.functions import with_ones
from pipeline.surgery.rules.probe import PROBED
from pipeline.surgery.trace.copies import (
    add_node,
    cached_results,
    copy_modules,
    graph_module,
    modules_by_path,
    named_tensors,
    set_mode,
)


def rebuild(
    analysis: Analysis, cut: Cut, gained: tuple[str, ...] = (), weights: fx.GraphModule | None = None,
    ones: tuple[str, ...] = (),
) -> fx.GraphModule:  # fmt: skip
    """The compact network as a `torch.fx.GraphModule`; parameters keep their names and their requires_grad.

    `gained` names biases to add as zeros: those that a plan says were folded into; `ones` weights that read a channel
    of ones behind the others. `weights` is a copy of the traced network, in another precision perhaps, to take the
    parameters from.
    """
    source = analysis.traced.module if weights is None else weights
    modules = modules_by_path(source)
    memo = cached_results(modules.values())
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
    widened = _merge(cut, root) | _widen(analysis, root, ones)
    graph = _graph(analysis, cut, added, widened)
    groups = {str(node.target): count for node, count in cut.groups.items() if node.op == "call_module"}
    for path, module in modules_by_path(root).items():
        refresh(module, groups.get(path))
    compact = graph_module(root, graph, source.__class__.__name__)
    set_mode(compact, source.training)
    return compact


def _tensors(modules: dict[str, nn.Module], cut: Cut) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameters and buffers under their first names: the one there was, and what stays of it."""
    results: dict[str, tuple[Tensor, Tensor]] = {}
    seen, copies = set(), Copies()
    for name, tensor in named_tensors(modules):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        part = cut_tensor(tensor, name, cut, copies)
        parameter = isinstance(tensor, nn.Parameter)
        results[name] = (tensor, nn.Parameter(part, requires_grad=tensor.requires_grad) if parameter else part)
    copies.make()
    return results


def _fold(cut: Cut, root: nn.Module) -> dict[fx.Node, str]:
    """Put folded constants into biases; {call: name of the bias it gained}."""
    added = {}
    for weight, (node, bias, delta) in cut.folds.items():
        owner = root.get_submodule(weight.rpartition(".")[0])
        like = attrgetter(weight)(root)
        change = torch.as_tensor(delta).to(dtype=like.dtype, device=like.device)
        if bias is not None:
            with torch.no_grad():
                current = attrgetter(bias)(root)
                current.copy_((current.double() + torch.as_tensor(delta, device=current.device)).to(current.dtype))
        else:
            owner._parameters.pop("bias", None)
            owner.register_parameter("bias", nn.Parameter(change, requires_grad=like.requires_grad))
            added[node] = weight.removesuffix("weight") + "bias"
    return added


def _merge(cut: Cut, root: nn.Module) -> set[fx.Node]:
    """Put the kernels of merged constants into weights; the calls that read a channel of ones from now on."""
    for weight, merged in cut.merged.items():
        current = attrgetter(weight)(root)
        with torch.no_grad():
            if merged.into is not None:
                place = current.narrow(merged.axis, merged.into, 1)
                place.copy_((place.double() + merged.kernel.to(place.device)).to(place.dtype))
            else:
                wider = torch.cat([current, merged.kernel.to(current)], merged.axis)
                _set_parameter(root, weight, wider, current.requires_grad)
    return {merged.node for merged in cut.merged.values() if merged.into is None}


def _widen(analysis: Analysis, root: nn.Module, names: tuple[str, ...]) -> set[fx.Node]:
    """One more input of zeros for each of the weights."""
    reading = {layer.weight: layer for layer in analysis.layers if layer.weight in names}
    for name, layer in reading.items():
        weight = attrgetter(name)(root)
        more = torch.zeros_like(weight.narrow(1 - layer.axis, 0, 1))
        _set_parameter(root, name, torch.cat([weight.detach(), more], 1 - layer.axis), weight.requires_grad)
    return {layer.node for layer in reading.values()}


def _set_parameter(root: nn.Module, name: str, tensor: Tensor, requires_grad: bool) -> None:
    owner, _, leaf = name.rpartition(".")
    root.get_submodule(owner).register_parameter(leaf, nn.Parameter(tensor, requires_grad=requires_grad))


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


def _graph(analysis: Analysis, cut: Cut, added: dict[fx.Node, str], widened: set[fx.Node]) -> fx.Graph:
    graph = fx.Graph()
    results: dict[fx.Node, Any] = {}

    def argument(x: Any) -> Any:
        if isinstance(x, fx.Node):
            return results[x]
        if isinstance(x, str) and x.startswith("parameter:"):
            return graph.get_attr(x.removeprefix("parameter:"))
        if isinstance(x, tuple) and x and x[0] == "size:":
            return graph.call_method("size", (results[x[1]], x[2]))
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
            passed, more = argument(args), argument(dict(kwargs))
            results[node] = graph.create_node("call_function", target, passed, more, name=node.name)
            continue
        numbers = {n: analysis.env[n] for n in cut.numbers.get(node, ())}
        current = results | numbers if numbers else results
        args, kwargs = (fx.node.map_arg(passed, current.__getitem__) for passed in (node.args, node.kwargs))
        if node in widened:
            args = (graph.call_function(with_ones, args[:1]), *args[1:])
        results[node] = new = add_node(graph, node.op, node.target, args, kwargs, node.name, node.type)
        new.meta = {key: value for key, value in node.meta.items() if key not in ("val", PROBED)}
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
