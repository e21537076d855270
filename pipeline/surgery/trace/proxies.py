"""Values that are traced: each knows what its example inputs give it, and answers plain questions with that."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterator
from opcode import opmap
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

LOAD_ATTR = opmap["LOAD_ATTR"]
MOVES = ("is_cuda", "is_cpu", "is_meta")  # questions about where a tensor is


class ConcreteAttribute(fx.proxy.Attribute):
    """An attribute of a proxy, such as a shape."""

    def __len__(self) -> int:
        return len(self.node.meta["val"])

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __getattr__(self, k: str) -> Any:
        return _attribute(self, k)


class ConcreteProxy(fx.Proxy):
    """A proxy that knows the value its example inputs give it; asked for a plain number, it answers with that.

    So it knows how many values it unpacks to; fx would disassemble the caller to learn that.
    """

    @property
    def __class__(self) -> type:
        """The type of the value, for code that reads this attribute.

        PyTorch's C code reads it too, to learn what a thing is, and would take memory that a proxy does not have.
        """
        frame = sys._getframe(1)
        if frame.f_code.co_code[frame.f_lasti] == LOAD_ATTR and "val" in self.node.meta:
            return type(self.node.meta["val"])
        return ConcreteProxy

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise TypeError("a traced value keeps its type")

    def __getattr__(self, k: str) -> Any:
        return _attribute(self, k)

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __len__(self) -> int:
        tracer: Any = self.tracer
        tracer.settled = True  # of a tensor this is the number of images
        return len(self.node.meta["val"])

    def __index__(self) -> int:
        return int(operator.index(self._concrete()))

    def __int__(self) -> int:
        return int(self._concrete())

    def __float__(self) -> float:
        return float(self._concrete())

    def __complex__(self) -> complex:
        return complex(self._concrete())

    def __round__(self, *digits: int) -> Any:
        return round(self._concrete(), *digits)

    def __floor__(self) -> int:
        return math.floor(float(self._concrete()))

    def __ceil__(self) -> int:
        return math.ceil(float(self._concrete()))

    def __trunc__(self) -> int:
        return math.trunc(float(self._concrete()))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.asarray(self._concrete(), *args)

    def item(self) -> Any:
        return self._concrete().item()

    def tolist(self) -> Any:
        return self._concrete().tolist()

    def _concrete(self) -> Any:
        """The value, which the graph will hold as it is here, for any number of images."""
        tracer: Any = self.tracer
        return tracer.number(self.node)

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, operator.add, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, operator.sub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, operator.mul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, operator.truediv, other)

    def _in_place(self, overwriting: Any, plain: Any, other: Any) -> Any:
        """A tensor is overwritten, and so are the tensors that share its memory; a number is not."""
        target = overwriting if isinstance(self.node.meta["val"], Tensor) else plain
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        """Record the assignment out of place; later reads of this proxy see the result."""
        self.node = self.tracer.create_proxy("call_function", with_item, (self, index, value), {}).node


def _attribute(proxy: Any, name: str) -> Any:
    val = proxy.node.meta["val"]
    if not hasattr(type(val), name) and name not in getattr(val, "__dict__", ()):  # libraries tell types apart by that
        raise AttributeError(f"{type(val).__name__!r} object has no attribute {name!r}")
    if name == "ndim":
        return val.ndim  # code looks a rank up in tables
    if name in MOVES and isinstance(val, Tensor):
        device = proxy.tracer._device  # the traced tensor itself lies nowhere
        return device is not None and device.type == name.removeprefix("is_")
    if name in ("type", "index") and isinstance(val, torch.device):
        return getattr(proxy.tracer._device or val, name)  # an autocast wants plain words
    return ConcreteAttribute(proxy, name)


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of `x` in which `x[index] = value`."""
    x = x.clone()
    x[index] = value
    return x


_isinstance = isinstance


def is_instance(x: Any, kinds: Any) -> bool:
    """`isinstance(x, kinds)`; a value that is traced is also what it stands for, but not to PyTorch's inner code."""
    if _isinstance(x, kinds):
        return True
    if type(x) is not ConcreteProxy and type(x) is not ConcreteAttribute:
        return False
    inside = str(sys._getframe(1).f_globals.get("__name__", "")).startswith(("torch.", "pipeline.surgery."))
    return not inside and _isinstance(x.node.meta["val"], kinds)
