"""Operators that gather positions or channels into fewer: pools, reductions, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from pipeline.models.onnx import functions
from pipeline.models.onnx.convert import VAL, Call, UnsupportedError, Value
from pipeline.models.onnx.operators.layers import pads_of, positive

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceL2": torch.linalg.vector_norm,
}  # fmt: skip


def _window(call: Call) -> tuple[fx.Node, list[int], list[int], list[int], list[int], bool]:
    x, kernel = call.tensor(0), positive(call.attr("kernel_shape"), "kernel_shape")
    rank = len(kernel)
    if rank not in functions.MAX_POOLS or x.meta[VAL].dim() != rank + 2:
        raise UnsupportedError(f"a pool over {rank} axes")
    stride = positive(call.attr("strides", [1] * rank), "strides")
    dilation = positive(call.attr("dilations", [1] * rank), "dilations")
    pads = pads_of(call, kernel, stride, dilation)
    return x, kernel, stride, pads, dilation, bool(call.attr("ceil_mode", 0))


def max_pool(call: Call) -> Value:
    if sum(map(bool, call.node.output)) > 1:
        raise UnsupportedError("a max pool that gives its indices")
    return call.c.emit(functions.max_pool2d, *_window(call))


def average_pool(call: Call) -> Value:
    x, kernel, stride, pads, dilation, ceil = _window(call)
    if any(d > 1 for d in dilation):
        raise UnsupportedError("a dilated average pool")
    return call.c.emit(functions.avg_pool2d, x, kernel, stride, pads, ceil, bool(call.attr("count_include_pad", 0)))


def _spatial(x: fx.Node) -> list[int]:
    return list(range(2, x.meta[VAL].dim()))


def global_average(call: Call) -> Value:
    x = call.tensor(0)
    return call.c.emit(torch.mean, x, _spatial(x), True)


def global_max(call: Call) -> Value:
    x = call.tensor(0)
    return call.c.emit(torch.amax, x, _spatial(x), True)


def reduction(call: Call) -> Value:
    """Axes are an attribute in older operator sets, an input in newer ones; none are all."""
    x = call.tensor(0)
    rank = x.meta[VAL].dim()
    axes = call.fixed_ints(1) if call.has(1) else list(call.attr("axes", []))
    if not axes and call.attr("noop_with_empty_axes", 0):
        return x
    axes = sorted({a % rank for a in axes}) if axes else list(range(rank))
    function, keep = REDUCTIONS[call.node.op_type], bool(call.attr("keepdims", 1))
    if function is torch.linalg.vector_norm:
        return call.c.emit(function, x, 2, axes, keep)
    return call.c.emit(function, x, axes, keep)


def softmax(call: Call) -> Value:
    """Before operator set 13 over all axes from `axis` on together."""
    x, function = call.tensor(0), {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}[call.node.op_type]
    rank = x.meta[VAL].dim()
    axis = call.attr("axis", -1 if call.opset >= 13 else 1) % rank
    if call.opset < 13 and any(n != 1 for n in x.meta[VAL].shape[axis + 1 :]):
        call.c.frozen[call.node.name or call.node.output[0]] = "a softmax over several axes"
        return call.c.emit(functions.joint_softmax, x, axis, function is torch.log_softmax)
    return call.c.emit(function, x, axis)


def local_response(call: Call) -> Value:
    """Each channel by its neighbours: all have to stay."""
    call.c.frozen[call.node.name or call.node.output[0]] = "each channel is divided by its neighbours"
    numbers = (call.attr(n, d) for n, d in (("size", None), ("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return call.c.emit(functional.local_response_norm, call.tensor(0), *numbers)
