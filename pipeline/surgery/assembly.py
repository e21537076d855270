"""Graphs, and the `torch.fx.GraphModule` around what a graph names."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import fx, nn


def add_node(
    graph: fx.Graph, op: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
) -> fx.Node:
    """`graph.create_node`, which looks for symbolic sizes in all arguments it is given; here they are none."""
    node = graph.create_node(op, target, (), {}, name, type_expr)
    node.args = args
    if kwargs:
        node.kwargs = kwargs
    return node


def graph_module(root: nn.Module, graph: fx.Graph, class_name: str) -> fx.GraphModule:
    """`fx.GraphModule(root, graph, class_name)`."""
    made = fx.GraphModule(nn.Module(), fx.Graph(), class_name)
    take_over(made, root, graph)
    return made


def take_over(made: fx.GraphModule, root: nn.Module, graph: fx.Graph) -> None:
    """Give an empty module the graph, and the modules and tensors that it names, in containers of its own.

    fx does so in its constructor, where it looks each path up step by step, which takes ten times as long.
    """
    made.training = root.training
    homes: dict[str, tuple[Any, Any]] = {"": (root, made)}  # path -> module of root, module of made
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            _place(str(node.target), homes)
    made.graph = graph


def _place(path: str, homes: dict[str, tuple[Any, Any]]) -> None:
    above, _, name = path.rpartition(".")
    source, target = _home(above, homes)
    if source is target:  # part of a module that was taken over as a whole
        return
    if name in source._modules:
        target._modules[name] = source._modules[name]
    elif name in source._parameters:
        target._parameters[name] = source._parameters[name]
    elif name in source._buffers:
        target.register_buffer(name, source._buffers[name], name not in source._non_persistent_buffers_set)
    else:
        setattr(target, name, attrgetter(name)(source))


def _home(path: str, homes: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    """The module at a path and its counterpart, an empty container where there was none."""
    if path not in homes:
        above, _, name = path.rpartition(".")
        source, target = _home(above, homes)
        if name not in target._modules:
            target._modules[name] = nn.Module()
        homes[path] = (source._modules[name], target._modules[name])
    return homes[path]
