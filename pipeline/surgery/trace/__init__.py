"""Trace a network into a graph whose every value has a known shape."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode
from torch.utils import _pytree as pytree

from pipeline.surgery.trace.attention import OpenAttention, can_be_opened
from pipeline.surgery.trace.copies import meta_twin, modules_by_path, own_values, set_mode, shallow_copy, take_over
from pipeline.surgery.trace.copies import unwrapped as unwrapped
from pipeline.surgery.trace.sizes import demand_size
from pipeline.surgery.trace.tracer import OPAQUE, ShapeTracer, first_line, on_meta

OTHER = 3  # more images than the example has, and none of the numbers that are tried
MOVES_NOTHING = ("contiguous", "clone", "detach")
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

    `computed`: parameters that stand for what the network computes (`settle`), by name, exact in float64. `rules`: a
    user's own rules, by function, method's name or module type. `probes`: whether calls without a rule are tried on
    random data. `sized`: whether forward took numbers from the sizes of images or sequences, or
    the cut does. `maps`: what depends on no input (`channels.maps.Maps`). `branches`: sides of additions that were
    constant, and whether there is still something to add; `gone`: layers that went with them, and their widths;
    `erased`: calls that did.
    """

    module: Recorded
    example_inputs: tuple[Tensor, ...]
    frozen: str | None = None
    computed: dict[str, Tensor] = field(default_factory=dict)
    rules: Mapping[Any, Any] = field(default_factory=dict)
    probes: bool = False
    sized: bool = False
    maps: Any = None
    branches: Mapping[str, bool] = field(default_factory=dict)
    gone: Mapping[str, int] = field(default_factory=dict)
    erased: frozenset[str] = frozenset()


def open_attention(model: nn.Module) -> None:
    """Replace each `nn.MultiheadAttention` that can be by a module of the same parameters that can be followed."""
    for name, child in list(model.named_children()):
        if can_be_opened(child):
            setattr(model, name, OpenAttention(child))
        else:
            open_attention(child)


def has_attention(model: nn.Module) -> bool:
    return any(can_be_opened(m) for m in modules_by_path(model).values())


def trace(model: nn.Module, example_inputs: tuple[Tensor, ...], rules: Mapping[Any, Any] | None = None) -> Traced:
    """Trace `model` in eval mode on inputs of the shapes and dtypes of `example_inputs`.

    The graph shares the model's parameters; the model itself is left as it is. A network that cannot be followed at
    all comes back with `frozen` set and a graph of the module as one opaque node. Modules of a type that `rules` names
    stay one call.
    """
    if has_attention(model):
        model = shallow_copy(model)
        open_attention(model)
    if any(map(_remembers, modules_by_path(model).values())):
        model = _forgetful(model, example_inputs)
    try:
        tracer, graph = _followed(model, example_inputs, _types(rules))
    except Exception as error:  # whatever code of the user raises
        return _one_node(model, example_inputs, f"{type(model).__name__} cannot be traced ({first_line(error)})")
    has_constants = any(node.target in tracer.constants for node in graph.nodes)
    if tracer.settled and not any_batch(model, tracer, graph, example_inputs):
        what = "makes tensors" if has_constants else "computes"
        return _one_node(model, example_inputs, f"{type(model).__name__} {what} for one batch size")
    if tracer.sized and not any_size(model, tracer, graph, example_inputs):
        demand_sizes(graph, example_inputs)
    root = model
    if has_constants:
        root = shallow_copy(model)
        for name, tensor in tracer.constants.items():
            root.register_buffer(name, tensor)
    recorded = Recorded(root, graph, type(model).__name__)
    return Traced(recorded, example_inputs, rules=rules or {}, sized=tracer.sized)


def _types(rules: Mapping[Any, Any] | None) -> tuple[type[nn.Module], ...]:
    return tuple(key for key in rules or () if isinstance(key, type) and issubclass(key, nn.Module))


def _followed(
    model: nn.Module, example_inputs: Sequence[Tensor], leaves: tuple[type[nn.Module], ...]
) -> tuple[ShapeTracer, fx.Graph]:
    """The calls of forward that anybody reads, each reading what is in memory by then; raises what forward raises."""
    tracer = ShapeTracer(example_inputs, model, leaves)
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


def _remembers(module: nn.Module) -> bool:
    """Whether a module keeps tensors or shapes beside its parameters, as caches of an earlier forward are."""
    return any(isinstance(v, Tensor | torch.Size) for v in own_values(module))


def _forgetful(model: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    """A copy of the network, sharing its tensors, whose caches are of another number of images.

    What an earlier forward left behind is made anew for the images at hand, or it would be made by no forward at all.
    """
    used = shallow_copy(model)
    try:
        with torch.no_grad():
            set_mode(used, False)(*resized(example_inputs, lambda shape: (shape[0] + OTHER, *shape[1:]), torch.zeros))
    except Exception:  # whatever code of the user raises: then it keeps what it has
        return model
    return used


def resized(example_inputs: Sequence[Any], shape_of: Callable[[torch.Size], Any], make: Callable[..., Tensor]) -> Any:
    """Inputs alike, each tensor of at least one axis with another shape."""

    def other(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dim():
            return x
        return make(tuple(shape_of(x.shape)), dtype=x.dtype, device=x.device)

    return pytree.tree_map(other, tuple(example_inputs))


def any_size(model: nn.Module, tracer: ShapeTracer, graph: fx.Graph, example_inputs: Sequence[Any]) -> bool:
    """Whether forward makes the same calls, with the same numbers, for images or sequences of other sizes.

    Sizes that forward does not take say nothing; where it takes none of those tried, the example's alone is right.
    """
    taken = 0
    for grown in (lambda n: n + 1, lambda n: n + 2, lambda n: 2 * n):

        def shape_of(shape: torch.Size, grown: Callable[[int], int] = grown) -> list[int]:
            return [grown(n) if axis >= min(2, len(shape) - 2) > 0 else n for axis, n in enumerate(shape)]

        try:
            again, calls = _followed(model, resized(example_inputs, shape_of, _empty_meta), tracer.leaves)
        except Exception:  # whatever code of the user raises
            continue
        taken += 1
        if _calls(calls) != _calls(graph) or not _equal(again.constants, tracer.constants):
            return False
    return taken > 0


def _empty_meta(shape: tuple[int, ...], dtype: torch.dtype, device: object) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def demand_sizes(graph: fx.Graph, example_inputs: Sequence[Any]) -> None:
    """Let the graph refuse inputs of other sizes than the example's."""
    for node, x in zip([n for n in graph.nodes if n.op == "placeholder"], example_inputs, strict=False):
        if isinstance(x, Tensor) and x.dim() > 2:
            with graph.inserting_after(node):
                demanded = graph.call_function(demand_size, (node, tuple(x.shape[1:])))
            demanded.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(demanded, delete_user_cb=lambda user, own=demanded: user is not own)


def any_batch(model: nn.Module, tracer: ShapeTracer, graph: fx.Graph, example_inputs: Sequence[Tensor]) -> bool:
    """Whether forward makes the same calls, with the same numbers and tensors, for another number of images.

    Asked where it took numbers from sizes: it may have made tensors of the size of the batch it saw, gone through its
    images one by one, or done one thing for few of them and another for many.
    """
    first = next((x for x in pytree.tree_leaves(list(example_inputs)) if isinstance(x, Tensor) and x.dim()), None)
    if first is None:
        return True
    seen = len(first)
    real = any(OPAQUE in node.meta for node in graph.nodes)  # these parts run on zeros that are there
    for count in (seen + 1, 1) if real else (seen + 1, 1, MANY):
        other = resized(example_inputs, lambda shape, count=count: (count, *shape[1:]), _empty_meta)  # type: ignore[misc]
        try:
            again, calls = _followed(model, other, tracer.leaves)
        except Exception:  # whatever code of the user raises
            return False
        if _calls(calls) != _calls(graph) or not _equal(again.constants, tracer.constants):
            return False
    return True


def _calls(graph: fx.Graph) -> list[tuple[str, Any, str]]:
    """The calls of a graph, without those that move no value."""
    names: dict[fx.Node, str] = {}
    calls: list[tuple[str, Any, str]] = []
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _Name(names[n]))
        if node.op == "call_method" and node.target in MOVES_NOTHING and node.args[0] in names:
            names[node] = names[node.args[0]]
            continue
        names[node] = f"%{len(calls)}"
        calls.append((node.op, node.target, repr((args, kwargs))))
    return calls


class _Name(str):
    """A value of a graph, by its place among the calls."""


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def _one_node(model: nn.Module, example_inputs: tuple[Tensor, ...], why: str) -> Traced:
    root = nn.Module()
    root.add_module("network", model)
    graph = fx.Graph()
    inputs = []
    for i, x in enumerate(example_inputs):
        node = graph.placeholder(f"input_{i}")
        node.meta["val"] = on_meta(x)
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
            overwrites = node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
            return overwrites or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
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
