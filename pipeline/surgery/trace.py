"""Trace a network into a graph whose every value has a known shape."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode
from torch.utils import _pytree as pytree

from pipeline.surgery.assembly import take_over
from pipeline.surgery.attention import OpenAttention
from pipeline.surgery.copies import meta_twin, modules_by_path, set_mode, shallow_copy
from pipeline.surgery.tracer import OPAQUE, ShapeTracer, first_line


class Recorded(fx.GraphModule):
    """A graph over a network's modules that runs call by call: it is mostly read, and code for it is slow to make."""

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str) -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name)
        take_over(self, root, graph)

    def recompile(self) -> PythonCode:
        return PythonCode("", {}, None)

    def forward(self, *inputs: Any) -> Any:
        return fx.Interpreter(self).run(*inputs)


@dataclass(frozen=True)
class Traced:
    """A graph over the network's own modules; `frozen` says why nothing could be traced, if so.

    `computed`: parameters that stand for what the network computes (`settle`), by name, exact in float64.
    """

    module: Recorded
    example_inputs: tuple[Tensor, ...]
    frozen: str | None = None
    computed: dict[str, Tensor] = field(default_factory=dict)


def open_attention(model: nn.Module) -> None:
    """Replace every `nn.MultiheadAttention` by a module of the same parameters whose forward can be traced."""
    for name, child in list(model.named_children()):
        if type(child) is nn.MultiheadAttention:
            setattr(model, name, OpenAttention(child))
        else:
            open_attention(child)


def has_attention(model: nn.Module) -> bool:
    return any(type(m) is nn.MultiheadAttention for m in modules_by_path(model).values())


def trace(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Traced:
    """Trace `model` in eval mode on inputs of the shapes and dtypes of `example_inputs`.

    The graph shares the model's parameters; the model itself is left as it is. A network that cannot be followed at
    all comes back with `frozen` set and a graph of the module as one opaque node.
    """
    if has_attention(model):
        model = shallow_copy(model)
        open_attention(model)
    twin = set_mode(meta_twin(model), False)
    tracer = ShapeTracer(example_inputs, model)
    root: nn.Module = model
    frozen = None
    try:
        graph = tracer.trace(twin)
    except Exception as error:
        frozen = f"{type(model).__name__} cannot be traced ({first_line(error)})"
        root = nn.Module()
        root.add_module("network", model)
        graph = _one_node(example_inputs, frozen)
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # fx marks the last call of a body that was followed; it is no wrapped call
    modules = modules_by_path(root, every=True)
    _follow_aliases(graph, modules)
    erase_unread(graph, modules)
    made = any(node.target in tracer.constants for node in graph.nodes)
    if made:
        root = shallow_copy(model)
        for name, tensor in tracer.constants.items():
            root.register_buffer(name, tensor)
    if (made or tracer.settled) and frozen is None and not any_batch(graph, twin, tracer.constants, example_inputs):
        frozen = f"{type(model).__name__} {'makes tensors' if made else 'computes'} for one batch size"
        root = nn.Module()
        root.add_module("network", model)
        graph = _one_node(example_inputs, frozen)
    return Traced(Recorded(root, graph, type(model).__name__), example_inputs, frozen)


def any_batch(
    graph: fx.Graph, twin: nn.Module, constants: dict[str, Tensor], example_inputs: tuple[Tensor, ...]
) -> bool:
    """Whether the graph takes one image more, and answers to it: forward may have made tensors of the size of the
    batch it saw, or gone through its images one by one."""
    if any(OPAQUE in node.meta for node in graph.nodes):
        return True  # its inside does not run on meta tensors; the law is held at several batch sizes
    for name, tensor in constants.items():
        setattr(twin, name, tensor.to("meta"))
    more = [torch.empty((len(x) + 1, *x.shape[1:]), dtype=x.dtype, device="meta") for x in example_inputs]
    try:
        with torch.device("meta"):  # where forward makes tensors from sizes, too
            made = pytree.tree_leaves(Recorded(twin, graph, "twin")(*more))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    (output,) = (node for node in graph.nodes if node.op == "output")
    seen = pytree.tree_leaves(fx.node.map_arg(output.args[0], lambda node: node.meta["val"]))
    shapes = [[x.shape[:1] for x in leaves if isinstance(x, Tensor)] for leaves in (seen, made)]
    count = (len(example_inputs[0]),)
    grown = [b != a for a, b in zip(*shapes, strict=False) if a == count]  # another output may be (1, ...) by itself
    return len(shapes[0]) == len(shapes[1]) and (any(grown) or not grown)


def _one_node(example_inputs: tuple[Tensor, ...], why: str) -> fx.Graph:
    graph = fx.Graph()
    inputs = []
    for i, x in enumerate(example_inputs):
        node = graph.placeholder(f"input_{i}")
        node.meta["val"] = x.to("meta")
        inputs.append(node)
    call = graph.call_module("network", tuple(inputs))
    call.meta.update({OPAQUE: why, "val": None})
    graph.output(call)
    return graph


def in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the call overwrites its first argument."""
    match node.op:
        case "call_module":
            return bool(getattr(modules[str(node.target)], "inplace", False))
        case "call_method":
            return str(node.target).endswith("_") and not str(node.target).endswith("__")
        case "call_function":
            name = getattr(node.target, "__name__", "")
            known = node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
            return known or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
    return False


def _follow_aliases(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Let readers that come after an in-place call read its result, as they do in memory."""
    seen: set[fx.Node] = set()
    for node in graph.nodes:
        seen.add(node)
        if not node.args or not isinstance(node.args[0], fx.Node) or not in_place(node, modules):
            continue
        source = node.args[0]
        source.replace_all_uses_with(node, delete_user_cb=lambda user, seen=set(seen): user not in seen)  # type: ignore[misc]


def erase_unread(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Erase calls whose results nobody reads (shape assertions, unused outputs)."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not in_place(node, modules):
            graph.erase_node(node)
