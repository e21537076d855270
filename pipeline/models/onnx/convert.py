"""Node by node from an ONNX graph to a torch.fx graph over torch's own layers and functions.

Two shapes are carried for every tensor, for two sizes of the axes that may vary: an axis that differs is free, and what
the graph computes from its size stays a computation; every other size is a number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from export.onnx.graph import first_line
from pipeline.models.onnx.functions import Reference, fixed
from runtime.errors import UserError

Array = NDArray[Any]
Value = fx.Node | Array  # an array of objects holds sizes: whole numbers, and nodes that compute one
VAL, ALT, SOURCE = "val", "alt", "onnx"  # keys of fx.Node.meta: the two shapes, the index of the ONNX node
MAX_ELEMENTS = 1 << 28  # of one tensor
DTYPES = {
    np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64, np.dtype(np.float16): torch.float16,
    np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32, np.dtype(np.int16): torch.int16,
    np.dtype(np.int8): torch.int8, np.dtype(np.uint8): torch.uint8, np.dtype(np.bool_): torch.bool,
}  # fmt: skip


class UnsupportedError(Exception):
    """Torch has no call for this form of an operator; the message is the reason."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the torch network: the ONNX value it holds, and how its axes lie ("" as there)."""

    value: str
    layout: str = ""


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "transposed": lambda x: np.ascontiguousarray(x.T),
    "flat": lambda x: x.reshape(-1),
}


@dataclass
class Network:
    """`module` computes what the ONNX graph `model` does; `example` is an input of it, batch 2 where that may vary.

    `parameters`: its parameters and buffers -> the ONNX values they hold.
    """

    module: fx.GraphModule
    model: onnx.ModelProto
    example: tuple[Tensor, ...]
    parameters: dict[str, Parameter]
    constants: dict[str, Array]
    sizes: frozenset[str] = frozenset()
    """ONNX values that are sizes of tensors, of which some vary."""
    batch: int | None = None
    """The batch size that the file fixes."""
    frozen: dict[str, str] = field(default_factory=dict)
    """ONNX nodes that surgery cannot look into -> why."""
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    """ONNX values that depend on the inputs -> where the module's graph makes them."""


class Converter:
    """`values`: what every ONNX value seen so far is in torch; `constants`: those that depend on no input."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.model, self.opset = model, opset
        self.graph, self.root = fx.Graph(), nn.Module()
        self.values: dict[str, Value] = {}
        self.parameters: dict[str, Parameter] = {}
        self.frozen: dict[str, str] = {}
        self.index = -1
        self.batch: int | None = None  # the batch size that the file fixes
        self._tensors: dict[tuple[Parameter, bool], Tensor] = {}
        self._fetched: dict[str, fx.Node] = {}
        self._sizes: dict[tuple[fx.Node, int], fx.Node] = {}

    def placeholder(self, name: str, val: Tensor, alt: Tensor) -> None:
        node = self.graph.placeholder(f"input_{len(self.values)}")
        node.meta = {VAL: val, ALT: alt, SOURCE: -1}
        self.values[name] = node

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of `target`, run on both shapes."""
        node = self.graph.call_function(target, args, kwargs)
        if target.__module__.startswith(__package__ or ""):
            node.meta["is_wrapped"] = True  # a tracer that runs the graph's code takes the call for one, as of torch's
        return self._run(node, target, args, kwargs)

    def method(self, name: str, x: fx.Node, *args: Any) -> fx.Node:
        node = self.graph.call_method(name, (x, *args))
        return self._run(node, lambda t, *rest: getattr(t, name)(*rest), (x, *args), {})

    def layer(self, kind: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """A call of a layer of its own, named after the ONNX node."""
        name = f"n{self.index}_{kind}"
        self.root.add_module(name, module)
        node = self.graph.call_module(name, (x,))
        on_meta = {key: t.detach().to("meta") for key, t in (*module.named_parameters(), *module.named_buffers())}

        def run(t: Tensor) -> Any:
            return torch.func.functional_call(module, on_meta, (t,))

        return self._run(node, run, (x,), {})

    def _run(self, node: fx.Node, target: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        for key in (VAL, ALT):
            a, k = fx.node.map_arg((args, kwargs), partial(_recorded, key))
            result = target(*a, **k)
            for t in result if isinstance(result, tuple | list) else [result]:
                if isinstance(t, Tensor) and t.numel() > MAX_ELEMENTS:
                    raise ValueError(f"a tensor of shape {tuple(t.shape)} has over {MAX_ELEMENTS} elements")
            node.meta[key] = torch.utils._pytree.tree_map(
                lambda t: t.to("meta") if isinstance(t, Tensor) else t, result
            )
        node.meta[SOURCE] = self.index
        return node

    def tensor(self, name: str, layout: str = "", buffer: bool = False) -> Tensor:
        """The parameter (or buffer) that holds a constant; the same for all that read it alike."""
        key = (Parameter(name, layout), buffer)
        if key not in self._tensors:
            array = self.values[name]
            assert isinstance(array, np.ndarray)
            if array.dtype not in DTYPES:
                raise UnsupportedError(f"{name} is of type {array.dtype}")
            data = torch.from_numpy(np.array(LAYOUTS[layout](array), order="C"))
            plain = buffer or not data.is_floating_point()
            self._tensors[key] = data if plain else nn.Parameter(data, requires_grad=False)
        return self._tensors[key]

    def attach(self, kind: str, module: nn.Module, **names: Parameter | None) -> nn.Module:
        """Give a layer the constants named, and note which they are."""
        for role, source in names.items():
            if source is None:
                continue
            buffer = role.startswith("running_")
            tensor = self.tensor(source.value, source.layout, buffer)
            if buffer:
                module.register_buffer(role, tensor.clone())  # one of several layers would be cut in the first alone
            else:
                module.register_parameter(role, tensor)  # type: ignore[arg-type]
            self.parameters[f"n{self.index}_{kind}.{role}"] = source
        return module.eval()

    def fetch(self, name: str) -> fx.Node:
        """A constant as a tensor of the network."""
        if name not in self._fetched:
            attribute = f"constant_{len(self._fetched)}"
            tensor = self.tensor(name)
            if isinstance(tensor, nn.Parameter):
                self.root.register_parameter(attribute, tensor)
            else:
                self.root.register_buffer(attribute, tensor)
            self.parameters[attribute] = Parameter(name)
            node = self.graph.get_attr(attribute)
            node.meta = {VAL: tensor.detach().to("meta"), ALT: tensor.detach().to("meta"), SOURCE: self.index}
            self._fetched[name] = node
        return self._fetched[name]

    def sizes(self, x: fx.Node) -> Array:
        """The shape: numbers, and for free axes nodes."""
        out = np.empty(x.meta[VAL].dim(), object)
        for axis, (a, b) in enumerate(zip(x.meta[VAL].shape, x.meta[ALT].shape, strict=True)):
            out[axis] = a
            if a != b:
                if (x, axis) not in self._sizes:
                    self._sizes[x, axis] = self.method("size", x, axis)
                out[axis] = self._sizes[x, axis]
        return out


def _recorded(key: str, node: fx.Node) -> Any:
    return node.meta[key]


class Call:
    """One ONNX node, as the functions that convert it see it."""

    def __init__(self, converter: Converter, node: onnx.NodeProto, hold: bool = False) -> None:
        self.c, self.node, self.opset, self._hold = converter, node, converter.opset, hold
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self._held: dict[int, fx.Node] = {}

    def __len__(self) -> int:
        return len(self.node.input)

    def has(self, i: int) -> bool:
        return i < len(self.node.input) and bool(self.node.input[i])

    def value(self, i: int) -> Value:
        name = self.node.input[i] if self.has(i) else ""
        if name not in self.c.values:
            raise ValueError(f"its input {i} {name!r} is not there")
        return self.c.values[name]

    def constant(self, i: int) -> Array | None:
        """Input `i` where it is a constant of numbers."""
        value = self.value(i)
        return value if isinstance(value, np.ndarray) and value.dtype != object else None

    def tensor(self, i: int) -> fx.Node:
        """Input `i` as a tensor."""
        value = self.value(i)
        if isinstance(value, fx.Node):
            if self._hold and i not in self._held:
                self._held[i] = self.c.emit(fixed, value)
            return self._held.get(i, value)
        if value.dtype == object:
            raise UnsupportedError("sizes are read as a tensor")
        return self.c.fetch(self.node.input[i])

    def operand(self, i: int) -> Any:
        """Input `i` of an elementwise call: a number where it is one, else a tensor."""
        value = self.value(i)
        if isinstance(value, np.ndarray) and value.size == 1 and value.ndim <= 1:
            return value.reshape(-1)[0] if value.dtype == object else value.reshape(-1)[0].item()
        return self.tensor(i)

    def ints(self, i: int) -> list[Any]:
        """Whole numbers (or nodes that compute them) of input `i`."""
        value = self.value(i)
        if isinstance(value, fx.Node):
            raise UnsupportedError(f"its input {self.node.input[i]} is computed from data")
        return [n if isinstance(n, fx.Node) else int(n) for n in value.reshape(-1)]

    def fixed_ints(self, i: int) -> list[int]:
        ints = self.ints(i)
        if any(isinstance(n, fx.Node) for n in ints):
            raise UnsupportedError(f"its input {self.node.input[i]} is computed from sizes that vary")
        return ints

    def shape(self, i: int) -> tuple[int, ...]:
        value = self.value(i)
        return tuple(value.meta[VAL].shape) if isinstance(value, fx.Node) else value.shape

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def parameter(self, i: int, layout: str = "") -> Parameter | None:
        """Input `i` as a layer's parameter; None where there is none."""
        if not self.has(i):
            return None
        array = self.constant(i)
        if array is None:
            raise UnsupportedError(f"its {self.node.input[i]} is no constant")
        if not np.isfinite(array).all():
            raise UnsupportedError(f"its {self.node.input[i]} holds infinities")
        return Parameter(self.node.input[i], layout)


def reference(call: Call, reason: str) -> list[Value]:
    """The node by onnx's own evaluator: surgery leaves alone what it reads."""
    node, c = call.node, call.c
    constants: dict[int, Array] = {}
    tensors = []
    for i, name in enumerate(node.input):
        value = c.values.get(name)
        if isinstance(value, np.ndarray):
            if value.dtype == object:
                raise UnsupportedError(f"sizes that vary go into it ({reason})")
            constants[i] = value
        elif name:
            tensors.append(call.value(i))
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedError(f"it is of the domain {node.domain}")
    outputs = c.emit(Reference(node, c.opset, constants), *tensors)
    c.frozen[node.name or node.output[0]] = reason
    return [c.emit(operator.getitem, outputs, i) for i in range(sum(map(bool, node.output)))]


def refusal(node: onnx.NodeProto, index: int, error: BaseException) -> UserError:
    name = node.name or f"{index} ({', '.join(node.output)})"
    return UserError(
        f"node {name}, operator {node.op_type}: {first_line(error)}",
        "operators and shapes that can be followed",
        "see docs/surgery.md, or mend the file",
    )
