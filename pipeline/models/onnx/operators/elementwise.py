"""Operators on each element alone."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from pipeline.models.onnx.convert import DTYPES, VAL, Call, UnsupportedError, Value

UNARY: dict[str, Callable[..., Any]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Erf": torch.erf, "Floor": torch.floor, "Ceil": torch.ceil,
    "Reciprocal": torch.reciprocal, "Sin": torch.sin, "Cos": torch.cos, "Sign": torch.sign, "Round": torch.round,
    "Softsign": functional.softsign, "Mish": functional.mish, "HardSwish": functional.hardswish,
}  # fmt: skip
BINARY: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Pow": torch.pow, "Greater": operator.gt,
    "Less": operator.lt, "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le, "Equal": operator.eq,
}  # fmt: skip
LOGICAL: dict[str, Callable[..., Any]] = {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip
SEVERAL: dict[str, Callable[..., Any]] = {"Sum": operator.add, "Max": torch.maximum, "Min": torch.minimum}


def unary(call: Call) -> Value:
    return call.c.emit(UNARY[call.node.op_type], call.tensor(0))


def binary(call: Call) -> Value:
    """Two operands, broadcast from the right; a single number stays one."""
    x, y = call.operand(0), call.operand(1)
    if not any(isinstance(v, fx.Node) and isinstance(v.meta[VAL], torch.Tensor) for v in (x, y)):
        x = call.tensor(0)
    function = BINARY[call.node.op_type]
    if function is torch.pow and isinstance(x, int | float):
        x = call.tensor(0)
    return call.c.emit(function, x, y)


def divide(call: Call) -> Value:
    """Div: of whole numbers, towards zero."""
    x, y = call.operand(0), call.operand(1)
    tensors = [v.meta[VAL] for v in (x, y) if isinstance(v, fx.Node) and isinstance(v.meta[VAL], torch.Tensor)]
    if all(t.is_floating_point() for t in tensors):
        return call.c.emit(operator.truediv, x, y)
    return call.c.emit(torch.div, call.tensor(0), call.tensor(1), rounding_mode="trunc")


def logical(call: Call) -> Value:
    return call.c.emit(LOGICAL[call.node.op_type], call.tensor(0), call.tensor(1))


def negation(call: Call) -> Value:
    return call.c.emit(torch.logical_not, call.tensor(0))


def several(call: Call) -> Value:
    """Sum, Max and Min of any number of operands."""
    function = SEVERAL[call.node.op_type]
    tensors = [call.tensor(i) for i in range(len(call))]
    return reduce(lambda x, y: call.c.emit(function, x, y), tensors)


def where(call: Call) -> Value:
    return call.c.emit(torch.where, *(call.tensor(i) for i in range(3)))


def number(call: Call, i: int, name: str) -> float | int | None:
    """A limit, given as an attribute before operator set 11, and as an input since."""
    if not call.has(i):
        return call.attr(name)  # type: ignore[no-any-return]
    array = call.constant(i)
    if array is None or array.size != 1:
        raise UnsupportedError(f"its {name} is no constant")
    return array.reshape(-1)[0].item()  # type: ignore[no-any-return]


def clip(call: Call) -> Value:
    low, high = number(call, 1, "min"), number(call, 2, "max")
    x = call.tensor(0)
    return x if low is None and high is None else call.c.emit(torch.clamp, x, low, high)


def hard_sigmoid(call: Call) -> Value:
    """max(0, min(1, alpha x + beta))."""
    alpha, beta, x = call.attr("alpha", 0.2), call.attr("beta", 0.5), call.tensor(0)
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        return call.c.emit(functional.hardsigmoid, x)
    scaled = call.c.emit(operator.add, call.c.emit(operator.mul, x, alpha), beta)
    return call.c.emit(torch.clamp, scaled, 0.0, 1.0)


def leaky_relu(call: Call) -> Value:
    return call.c.emit(functional.leaky_relu, call.tensor(0), call.attr("alpha", 0.01))


def elu(call: Call) -> Value:
    return call.c.emit(functional.elu, call.tensor(0), call.attr("alpha", 1.0))


def celu(call: Call) -> Value:
    return call.c.emit(functional.celu, call.tensor(0), call.attr("alpha", 1.0))


def selu(call: Call) -> Value:
    if {"alpha", "gamma"} & call.attributes.keys():
        raise UnsupportedError("scales of its own")
    return call.c.emit(functional.selu, call.tensor(0))


def softplus(call: Call) -> Value:
    """log(1 + exp x), at every size of x: torch's default goes over to x above 20."""
    return call.c.emit(functional.softplus, call.tensor(0), 1.0, 1e3)


def thresholded_relu(call: Call) -> Value:
    return call.c.emit(functional.threshold, call.tensor(0), call.attr("alpha", 1.0), 0.0)


def gelu(call: Call) -> Value:
    return call.c.emit(functional.gelu, call.tensor(0), approximate=call.attr("approximate", "none"))


def cast(call: Call) -> Value:
    import onnx

    dtype = DTYPES.get(onnx.helper.tensor_dtype_to_np_dtype(call.attr("to")))
    if dtype is None:
        raise UnsupportedError("a type that torch has not")
    return call.c.method("to", call.tensor(0), dtype)


def identity(call: Call) -> Value:
    """Identity, and Dropout in inference."""
    if len(call) > 2 and call.has(2) and (call.constant(2) is None or bool(call.constant(2))):
        raise UnsupportedError("dropout in training mode")
    if sum(map(bool, call.node.output)) > 1:
        raise UnsupportedError("dropout that gives its mask")
    return call.value(0)
