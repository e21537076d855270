"""The tracer: what forward calls, as a graph.

`torch.fx` records the calls; each is also executed on meta tensors, so that control flow on shapes takes the branch
the example inputs take. A submodule that cannot be followed becomes one opaque node.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.utils import _pytree as pytree

from pipeline.surgery.trace.attention import OpenAttention
from pipeline.surgery.trace.copies import add_node, deep_copy, modules_by_path, named_tensors
from pipeline.surgery.trace.float64 import CONSTANT
from pipeline.surgery.trace.proxies import ConcreteProxy
from pipeline.surgery.trace.shapes import CONFIGURED, SHAPE_PRESERVING, Shapes
from pipeline.surgery.trace.sizes import counts_images, counts_positions, namespaces, sizes_followed

# torchvision's and timm's; they stay modules, so that a compact network goes on training with them
PATH_DROPS = ("StochasticDepth", "DropPath")
# torch.nn's own, made of layers that can be cut
COMPOSED = (
    nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)  # fmt: skip
_NUMBERS = frozenset((bool, int, float, str, type(None)))
_LOWER_PATH = re.compile(r"(?!__)[a-z_][0-9a-z_.]*").fullmatch
OPAQUE = "opaque"  # node.meta key: why the node's inside is not known


class ShapeTracer(fx.Tracer):
    """Traces the meta twin of a network; nodes carry `meta["val"]`, a meta tensor or a plain value."""

    proxy_buffer_attributes = True

    def __init__(
        self, example_inputs: Sequence[Tensor], model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()
    ) -> None:
        super().__init__(param_shapes_constant=False)
        self.leaves = leaves  # types of modules that stay one call
        self._model = model
        self._opaque: nn.Module | None = None
        self._inputs = [on_meta(x) for x in example_inputs]
        self._device = next((x.device for x in pytree.tree_leaves(list(example_inputs)) if isinstance(x, Tensor)), None)
        self._cached: dict[str, Any] = {}
        self._executing = False
        self.settled = False  # whether forward took a number, a count or a branch from a proxy, which may be of images
        self.sized = False  # the same of the sizes of images or sequences
        self._shapes = Shapes()
        self._modules: dict[str, nn.Module] = {}
        self._names: dict[Tensor, str] = {}
        self.constants: dict[str, Tensor] = {}  # made by forward from nothing, by the attribute they are fetched from

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._modules = modules_by_path(root)
        self._names = {tensor: name for name, tensor in reversed(named_tensors(self._modules))}  # the first name counts
        try:
            with sizes_followed(namespaces(self._modules.values())):
                return super().trace(root, concrete_args)
        finally:  # what fx patched refers to the tracer in a circle, which must not keep the twin alive
            self.root, self._model, self._modules, self._names = nn.Module(), nn.Module(), {}, {}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._executing:
            return attr_val
        if not isinstance(attr_val, Tensor):
            return attr_val
        self._cached = parameter_proxy_cache  # kept to forget the parameters of a submodule given up on
        name = self._names.get(attr_val)
        if name is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder for each example input; forward gets None and numbers as they are, and what else its defaults
        say."""
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names += [f"input_{i}" for i in range(len(names), len(self._inputs))]
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in names[: len(self._inputs)]]
        plain = [
            p if isinstance(x, Tensor | dict | list | tuple) else x for p, x in zip(inputs, self._inputs, strict=True)
        ]
        return root_fn, [self.root, *plain]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, ConcreteProxy):
            return a.node
        if type(a) is tuple:
            return tuple(map(self.create_arg, a))
        if type(a) in _NUMBERS or (type(a) is dict and not a):
            return a
        named = getattr(type(a), "__dataclass_fields__", None)
        if named is not None and isinstance(a, dict):  # as Hugging Face's answers are; fx would make a plain dict of it
            return self.create_node("call_function", type(a), (), {n: self.create_arg(getattr(a, n)) for n in named})
        if isinstance(a, Tensor) and not self.tensor_attrs.get(a, CONSTANT).startswith(CONSTANT):
            del self.tensor_attrs[a]  # an attribute that is no buffer: fx gives it a name that the network does not use
        node = super().create_arg(a)
        if isinstance(node, fx.Node) and isinstance(a, Tensor) and "val" not in node.meta:
            node.meta["val"] = a.detach().to("meta")
            if str(node.target) in self.tensor_attrs.values():
                if a.is_meta:
                    raise ValueError("a tensor computed from parameters that are not read as attributes")
                self.constants[str(node.target)] = a.detach().clone()
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m._forward_hooks or m._forward_pre_hooks:
            return False  # what hooks do is a part of the graph
        if type(m) in self.leaves or type(m) in SHAPE_PRESERVING or type(m) in CONFIGURED:
            return True
        if isinstance(m, OpenAttention | fx.GraphModule | ParametrizationList) or is_parametrized(m):
            return False
        if type(m) in COMPOSED:
            return False
        return type(m).__name__ in PATH_DROPS or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> ConcreteProxy:
        return ConcreteProxy(node, self)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        """Without the record of modules and scopes that fx keeps of every call; paths are quickly made names."""
        if name is None and isinstance(target, str) and _LOWER_PATH(target):
            name = target.replace(".", "_")  # as fx would name it
        return add_node(self.graph, kind, target, args, kwargs, name, type_expr)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        if kind == "call_function" and getattr(target, "__module__", "").startswith("torchvision."):
            return target(*args, **kwargs)  # functions registered with fx.wrap: their bodies can be followed
        if kind == "call_function" and target is not operator.getitem and target is not getattr:
            args, kwargs = tuple(map(_spread, args)), {key: _spread(x) for key, x in kwargs.items()}
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if kind == "placeholder":
            proxy.node.meta["val"] = self._inputs[len(self.graph.nodes) - 1]
        elif kind != "output":
            self._executing = True
            try:
                proxy.node.meta["val"] = on_meta(self._execute(proxy.node))
            finally:
                self._executing = False
            if target is getattr and args[1] == "device":
                proxy.node.meta["val"] = self._device
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        val = obj.node.meta["val"]
        if isinstance(val, Tensor):
            return bool(self.real(obj.node))
        self.settled |= counts_images(obj.node)
        self.sized |= counts_positions(obj.node)
        return bool(val)

    def number(self, node: fx.Node) -> Any:
        """The value of a number, or of a tensor that comes from buffers alone; the graph will hold it as it is here."""
        if isinstance(node.meta["val"], Tensor):
            return self.real(node)
        self.settled = True
        self.sized |= counts_positions(node)
        return node.meta["val"]

    def real(self, node: fx.Node) -> Any:
        """The value of a tensor that comes from the network's buffers and constants alone."""

        def value(n: fx.Node) -> Any:
            val = n.meta["val"]
            return val if not isinstance(val, Tensor) else self.real(n)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        match node.op:
            case "get_attr" if str(node.target) in self.constants:
                return self.constants[str(node.target)]
            case "get_attr" if isinstance(buffer := operator.attrgetter(str(node.target))(self._model), Tensor):
                if isinstance(buffer, nn.Parameter):
                    raise ValueError(f"a branch or a number that depends on the parameter {node.target}")
                return buffer.detach()
            case "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        raise ValueError("a branch or a number that depends on the values of inputs")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        indexable: Any = obj
        self.settled |= isinstance(obj.node.meta["val"], Tensor)
        return iter([indexable[i] for i in range(len(obj.node.meta["val"]))])

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._executing:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or ()):
            return forward(*args, **kwargs)  # made in forward, as by `self.layers[:2]`; what it is made of is known
        before = len(self.graph.nodes)
        try:
            path = self.path_of_module(m)
            if self.is_leaf_module(m, path):
                return self.create_proxy("call_module", path, args, kwargs)
            return forward(*args, **kwargs)
        except Exception as error:
            for node in list(self.graph.nodes)[before:][::-1]:
                self.graph.erase_node(node)
            present = set(self.graph.nodes)
            for name in [n for n, p in self._cached.items() if p.node not in present]:
                del self._cached[name]
            self._opaque = m
            proxy = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
            proxy.node.meta[OPAQUE] = f"{type(m).__name__} cannot be traced ({first_line(error)})"
            return proxy

    def _on_zeros(self, path: str, args: Any, kwargs: Any) -> Any:
        """Shapes of a module whose code looks at values: run on zeros, in a copy with the real weights."""

        def real(x: Any) -> Any:
            return torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x

        module = deep_copy(self._model.get_submodule(path)).eval()
        with torch.no_grad():
            out = module(*pytree.tree_map(real, args), **pytree.tree_map(real, kwargs))
        return pytree.tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, out)

    def _execute(self, node: fx.Node) -> Any:
        def value(x: Any) -> Any:
            return x.meta["val"] if isinstance(x, fx.Node) else x.to("meta") if isinstance(x, Tensor) else x

        def number(x: fx.Node) -> Any:
            val = x.meta["val"]
            return self.number(x).item() if isinstance(val, Tensor) and not val.dim() else x

        try:
            return self._called(node, *fx.node.map_aggregate((node.args, node.kwargs), value))
        except RuntimeError as error:
            if "meta tensors" not in str(error):
                raise
        # the call reads tensors without axes as numbers, as `new_full` does: the graph holds what they are
        node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), number)
        return self._called(node, *fx.node.map_aggregate((node.args, node.kwargs), value))

    def _called(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        match node.op:
            case "call_function":
                return self._shapes.of_function(node.target, args, kwargs)  # type: ignore[arg-type]
            case "call_method":
                return self._shapes.of_method(str(node.target), args, kwargs)
            case "call_module" if self._opaque is not None:
                self._opaque = None
                return self._on_zeros(str(node.target), args, kwargs)
            case "call_module":
                return self._shapes.of_module(self._modules[str(node.target)], args, kwargs)
            case _:
                value_of = operator.attrgetter(str(node.target))(self.root)
                return value_of.detach().to("meta") if isinstance(value_of, Tensor) else value_of


def _spread(x: Any) -> Any:
    """Of tensors that one call returned together, each by itself: `cat(x.chunk(2))` reads two tensors."""
    val = x.node.meta["val"] if isinstance(x, ConcreteProxy) else None
    if type(val) in (tuple, list) and val and all(isinstance(v, Tensor) for v in val):
        return list(x) if isinstance(val, list) else tuple(x)
    return x


def on_meta(result: Any) -> Any:
    """A call's result with its tensors on meta: a tensor made from sizes alone is not there by itself."""
    if isinstance(result, Tensor):
        return result if result.is_meta else result.to("meta")
    if isinstance(result, tuple | list | dict) and not isinstance(result, torch.Size):
        return pytree.tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, result)
    return result


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]
