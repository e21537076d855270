"""Operators with weights as torch layers: convolutions, matrix products, normalisations, slopes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from pipeline.models.onnx.convert import VAL, Call, Parameter, UnsupportedError, Value
from pipeline.models.onnx.functions import groups_norm, sides, statistics_norm

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
META = torch.device("meta")
MAX_STEP = 1 << 16  # of strides, dilations and paddings


def positive(values: Sequence[int], what: str, least: int = 1) -> list[int]:
    if any(not least <= v <= MAX_STEP for v in values):
        raise ValueError(f"its {what} are {list(values)[:8]}")
    return list(values)


def pads_of(call: Call, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding at the begin of each axis, then at the end of each, `auto_pad` worked out."""
    rank, auto = len(kernel), call.attr("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = positive(call.attr("pads", [0] * 2 * rank), "pads", 0)
        if len(pads) != 2 * rank:
            raise ValueError(f"its pads are {pads}")
        return pads
    if auto == "VALID":
        return [0] * 2 * rank
    total = []
    for axis, size in enumerate(call.c.sizes(call.tensor(0))[2:]):
        if isinstance(size, fx.Node) and stride[axis] > 1:
            raise UnsupportedError("its padding depends on a size that varies")
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        last = 0 if isinstance(size, fx.Node) else (-(-size // stride[axis]) - 1) * stride[axis] - size
        total.append(max(0, last + extent) if not isinstance(size, fx.Node) else extent - 1)
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return less + more if auto == "SAME_UPPER" else more + less


def padded(call: Call, x: fx.Node, pads: Sequence[int]) -> tuple[fx.Node, list[int]]:
    """`x` padded by a call of its own where the two ends of an axis differ, and the padding left to the layer."""
    rank = len(pads) // 2
    if list(pads[:rank]) == list(pads[rank:]):
        return x, list(pads[:rank])
    return call.c.emit(functional.pad, x, sides(pads)), [0] * rank


def conv(call: Call) -> Value:
    weight, bias = call.parameter(1), call.parameter(2)
    shape = call.shape(1)
    rank, groups, x = len(shape) - 2, call.attr("group", 1), call.tensor(0)
    if rank not in CONVOLUTIONS or len(x.meta[VAL].shape) != rank + 2:
        raise UnsupportedError(f"a convolution over {rank} axes")
    kernel = list(shape[2:])
    if list(call.attr("kernel_shape", kernel)) != kernel or not 1 <= groups <= max(1, shape[0]):
        raise ValueError(f"its kernel_shape or group does not fit its weight {list(shape)}")
    stride = positive(call.attr("strides", [1] * rank), "strides")
    dilation = positive(call.attr("dilations", [1] * rank), "dilations")
    x, padding = padded(call, x, pads_of(call, kernel, stride, dilation))
    module = CONVOLUTIONS[rank](
        shape[1] * groups, shape[0], kernel, stride, padding, dilation, groups, bias is not None, device=META
    )
    return call.c.layer("conv", call.c.attach("conv", module, weight=weight, bias=bias), x)


def conv_transpose(call: Call) -> Value:
    weight, bias = call.parameter(1), call.parameter(2)
    shape = call.shape(1)
    rank, groups, x = len(shape) - 2, call.attr("group", 1), call.tensor(0)
    if (
        rank not in TRANSPOSED
        or call.attr("output_shape")
        or call.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        raise UnsupportedError("a transposed convolution whose padding follows from its output")
    stride = positive(call.attr("strides", [1] * rank), "strides")
    dilation = positive(call.attr("dilations", [1] * rank), "dilations")
    extra = positive(call.attr("output_padding", [0] * rank), "output_padding", 0)
    pads = positive(call.attr("pads", [0] * 2 * rank), "pads", 0)
    if pads[:rank] != pads[rank:] or any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise UnsupportedError("a transposed convolution padded by two sizes")
    module = TRANSPOSED[rank](
        shape[0], shape[1] * groups, list(shape[2:]), stride, pads[:rank], extra, groups, bias is not None, dilation,
        device=META,
    )  # fmt: skip
    return call.c.layer("conv", call.c.attach("conv", module, weight=weight, bias=bias), x)


def gemm(call: Call) -> Value:
    """alpha A B + beta C; a linear layer where B is constant and nothing is scaled."""
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    turned = call.attr("transA", 0), call.attr("transB", 0)
    has_c = call.has(2)
    bias_shape = call.shape(2) if has_c else ()
    plain = alpha == 1 and (beta == 1 or not has_c) and not turned[0] and call.constant(1) is not None
    width = call.shape(1)[0 if turned[1] else 1] if len(call.shape(1)) == 2 else 0
    if (
        plain
        and len(call.shape(1)) == 2
        and (not has_c or (bias_shape in ((width,), (1, width)) and call.constant(2) is not None))
    ):
        weight = call.parameter(1, "" if turned[1] else "transposed")
        bias = call.parameter(2, "" if len(bias_shape) == 1 else "flat")
        return _linear(call, call.tensor(0), weight, bias)
    a, b = (_turned(call, i) if turned[i] else call.tensor(i) for i in (0, 1))
    out = call.c.emit(torch.matmul, a, b)
    if alpha != 1:
        out = call.c.emit(operator.mul, out, alpha)
    if not has_c:
        return out
    c: Any = call.operand(2)
    if beta != 1:
        c = call.c.emit(operator.mul, c, beta) if isinstance(c, fx.Node) else c * beta
    return call.c.emit(operator.add, out, c)


def _turned(call: Call, i: int) -> fx.Node:
    return call.c.emit(torch.transpose, call.tensor(i), 0, 1)


def _linear(call: Call, x: fx.Node, weight: Parameter | None, bias: Parameter | None) -> Value:
    assert weight is not None
    rows, columns = call.c.tensor(weight.value, weight.layout).shape
    module = nn.Linear(columns, rows, bias is not None, device=META)
    return call.c.layer("linear", call.c.attach("linear", module, weight=weight, bias=bias), x)


def matmul(call: Call) -> Value:
    right = call.constant(1)
    if right is not None and right.ndim == 2 and isinstance(call.value(0), fx.Node) and right.dtype.kind == "f":
        return _linear(call, call.tensor(0), call.parameter(1, "transposed"), None)
    return call.c.emit(torch.matmul, call.tensor(0), call.tensor(1))


def batch_norm(call: Call) -> Value:
    if call.attr("training_mode", 0) or call.opset < 9 or len([n for n in call.node.output if n]) > 1:
        raise UnsupportedError("a batch norm in training mode")
    weight, bias, mean, var = (call.parameter(i) for i in range(1, 5))
    x, width = call.tensor(0), call.shape(1)
    kind = BATCH_NORMS.get(x.meta[VAL].dim() - 2)
    if kind is None or any(call.shape(i) != width for i in range(1, 5)) or len(width) != 1:
        raise UnsupportedError("a batch norm over other axes")
    module = kind(width[0], eps=call.attr("epsilon", 1e-5), device=META)
    del module.num_batches_tracked
    module.num_batches_tracked = None
    call.c.attach("norm", module, weight=weight, bias=bias, running_mean=mean, running_var=var)
    return call.c.layer("norm", module, x)


def instance_norm(call: Call) -> Value:
    weight, bias, x = call.parameter(1), call.parameter(2), call.tensor(0)
    kind = INSTANCE_NORMS.get(x.meta[VAL].dim() - 2)
    if kind is None or x.meta[VAL].shape[1:2] != call.shape(1):
        raise UnsupportedError("an instance norm over other axes")
    module = kind(call.shape(1)[0], eps=call.attr("epsilon", 1e-5), affine=True, device=META)
    return call.c.layer("norm", call.c.attach("norm", module, weight=weight, bias=bias), x)


def prelu(call: Call) -> Value:
    slope, x = call.constant(1), call.tensor(0)
    rank = x.meta[VAL].dim()
    if slope is None or slope.size not in (1, x.meta[VAL].shape[1] if rank > 1 else 1):
        raise UnsupportedError("slopes that are not one a channel")
    shape = (1,) * (rank - slope.ndim) + slope.shape
    if slope.size > 1 and shape[1] != slope.size:
        raise UnsupportedError("slopes that are not one a channel")
    module = nn.PReLU(slope.size, device=META)
    return call.c.layer("prelu", call.c.attach("prelu", module, weight=call.parameter(1, "flat")), x)


def layer_norm(call: Call) -> Value:
    """Statistics over channels: a graph without channels would need others, so surgery leaves them alone."""
    x = call.tensor(0)
    axis = call.attr("axis", -1) % x.meta[VAL].dim()
    shape = list(x.meta[VAL].shape[axis:])
    weight, bias = (call.tensor(i) if call.has(i) else None for i in (1, 2))
    if sum(map(bool, call.node.output)) > 1 or any(list(call.shape(i)) != shape for i in (1, 2) if call.has(i)):
        raise UnsupportedError("a layer norm that gives its statistics, or whose weights are broadcast")
    call.c.frozen[call.node.name or call.node.output[0]] = "a layer norm counts the channels it reads"
    return call.c.emit(statistics_norm, x, shape, weight, bias, call.attr("epsilon", 1e-5))


def group_norm(call: Call) -> Value:
    """Statistics over groups of channels, left alone like those of a layer norm. Scales are one a group before operator
    set 21, one a channel since."""
    x, groups = call.tensor(0), call.attr("num_groups")
    channels = x.meta[VAL].shape[1]
    call.c.frozen[call.node.name or call.node.output[0]] = "a group norm counts the channels it reads"
    repeats = channels // groups if call.opset < 21 else 1
    return call.c.emit(groups_norm, x, groups, call.tensor(1), call.tensor(2), call.attr("epsilon", 1e-5), repeats)
