"""Trace a network into a graph whose every value has a known shape."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode

from pipeline.surgery.assembly import take_over
from pipeline.surgery.attention import OpenAttention, can_be_opened
from pipeline.surgery.copies import meta_twin, modules_by_path, set_mode, shallow_copy
from pipeline.surgery.tracer import OPAQUE, ShapeTracer, first_line

MANY = 64  # images: more than code is likely to treat apart


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
    """Replace each `nn.MultiheadAttention` that can be by a module of the same parameters that can be followed."""
    for name, child in list(model.named_children()):
        if can_be_opened(child):
            setattr(model, name, OpenAttention(child))
        else:
            open_attention(child)


def has_attention(model: nn.Module) -> bool:
    return any(can_be_opened(m) for m in modules_by_path(model).values())


def trace(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Traced:
    """Trace `model` in eval mode on inputs of the shapes and dtypes of `example_inputs`.

    The graph shares the model's parameters; the model itself is left as it is. A network that cannot be followed at
    all comes back with `frozen` set and a graph of the module as one opaque node.
    """
    if has_attention(model):
        model = shallow_copy(model)
        open_attention(model)
    try:
        tracer, graph = _followed(model, example_inputs)
    except Exception as error:  # whatever code of the user raises
        return _one_node(model, example_inputs, f"{type(model).__name__} cannot be traced ({first_line(error)})")
    made = any(node.target in tracer.constants for node in graph.nodes)
    if tracer.settled and not any_batch(model, tracer, graph, example_inputs):
        what = "makes tensors" if made else "computes"
        return _one_node(model, example_inputs, f"{type(model).__name__} {what} for one batch size")
    root = model
    if made:
        root = shallow_copy(model)
        for name, tensor in tracer.constants.items():
            root.register_buffer(name, tensor)
    return Traced(Recorded(root, graph, type(model).__name__), example_inputs)


def _followed(model: nn.Module, example_inputs: Sequence[Tensor]) -> tuple[ShapeTracer, fx.Graph]:
    """The calls of forward that anybody reads, each reading what is in memory by then; raises what forward raises."""
    tracer = ShapeTracer(example_inputs, model)
    twin = set_mode(meta_twin(model), False)
    if twin._forward_hooks or twin._forward_pre_hooks:
        hooks_in_forward(twin)
    graph = tracer.trace(twin)
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # fx marks the last call of a body that was followed; it is no wrapped call
    modules = modules_by_path(model, every=True)
    _follow_aliases(graph, modules)
    erase_unread(graph, modules)
    return tracer, graph


def hooks_in_forward(model: nn.Module) -> None:
    """Make the hooks of the network itself a part of its forward, which is what a tracer calls."""
    kind = type(model)

    @wraps(kind.forward)
    def forward(self: nn.Module, *inputs: Any) -> Any:
        return self._call_impl(*inputs)  # type: ignore[no-untyped-call]

    model.forward = MethodType(kind.forward, model)  # which that calls
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def any_batch(model: nn.Module, tracer: ShapeTracer, graph: fx.Graph, example_inputs: Sequence[Tensor]) -> bool:
    """Whether forward makes the same calls, with the same numbers and tensors, for another number of images.

    Asked where it took numbers from sizes: it may have made tensors of the size of the batch it saw, gone through its
    images one by one, or done one thing for few of them and another for many.
    """
    seen = len(example_inputs[0])
    real = any(OPAQUE in node.meta for node in graph.nodes)  # these parts run on zeros that are there
    for count in (seen + 1, 1) if real else (seen + 1, 1, MANY):
        other = [x.new_empty((count, *x.shape[1:]), device="meta") for x in example_inputs]
        try:
            again, calls = _followed(model, other)
        except Exception:  # whatever code of the user raises
            return False
        if _calls(calls) != _calls(graph) or not _equal(again.constants, tracer.constants):
            return False
    return True


def _calls(graph: fx.Graph) -> list[tuple[str, Any, str]]:
    return [(node.op, node.target, repr((node.args, node.kwargs))) for node in graph.nodes]


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def _one_node(model: nn.Module, example_inputs: tuple[Tensor, ...], why: str) -> Traced:
    root = nn.Module()
    root.add_module("network", model)
    graph = fx.Graph()
    inputs = []
    for i, x in enumerate(example_inputs):
        node = graph.placeholder(f"input_{i}")
        node.meta["val"] = x.to("meta")
        inputs.append(node)
    call = graph.call_module("network", tuple(inputs))
    call.meta.update({OPAQUE: why, "val": None})
    graph.output(call)
    return Traced(Recorded(root, graph, type(model).__name__), example_inputs, why)


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
