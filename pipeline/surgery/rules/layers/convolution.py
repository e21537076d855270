"""Convolutions of every kind, and average pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.channels.analysis import Analysis, CutView, Layer, Result, Rule
from pipeline.surgery.channels.labels import Field, Labels, positions
from pipeline.surgery.channels.ledger import finite
from pipeline.surgery.rules.elementwise import over_positions
from pipeline.surgery.rules.layers.linear import mix
from pipeline.surgery.rules.layers.weights import Weights, array_of, pads, prod_out, summed


def depthwise(a: Analysis, node: fx.Node, x: Labels, w: Weights) -> Result:
    """One input channel a group: each output lives and goes with its input."""
    weight = a.tensor(w.weight)
    count = prod_out(weight, w)
    ids = a.channels(node, x, 1)
    shape = tuple(node.meta["val"].shape)
    if ids is None or (w.out_axis == 1 and weight.shape[1] != 1):
        if ids is not None:
            a.freeze(node, "transposed depthwise convolution with several outputs a channel", ids)
        a.freeze(node, "depthwise convolution of channels that cannot be cut", a.axis_ids(w.weight, 0))
        return Labels(shape), lambda cut: Labels(shape)
    times = count // len(ids)
    inputs, reach = a.ledger.constant(ids), array_of(weight).reshape(count, -1).any(1)
    bias = np.zeros(count) if w.bias is None else array_of(a.tensor(w.bias)).astype(np.float64)
    each = np.repeat(inputs, times)
    steady = (each == 0) | (np.isfinite(each) & (not w.padded)) | ~reach
    total = np.zeros(count)
    rows = np.flatnonzero(steady & reach)  # few, for what is dead has no taps as a rule
    read = weight.detach().index_select(0, torch.as_tensor(rows, device=weight.device))
    total[rows] = summed(read, w).cpu().numpy().reshape(-1)
    value = np.where(steady, bias + total * finite(each), np.nan)
    out = a.ledger.fresh(value, np.repeat(a.ledger.measured(ids), times) & reach, like=np.repeat(ids, times))
    a.bind(w.weight, 0, out)
    if w.bias is not None:
        a.bind(w.bias, 0, out)
    a.layers.append(Layer(node, w.name, w.weight, 0, out))

    def recast(cut: CutView) -> Labels:
        arrived = positions(ids, cut.value(node.args[0]).at(1).ids)
        rows = (arrived[:, None] * times + np.arange(times)).ravel()
        cut.slice(w.weight, 0, rows, out)
        if w.bias is not None:
            cut.slice(w.bias, 0, rows, out)
        cut.set_groups(node, len(arrived))
        return Labels((shape[0], len(rows), *shape[2:]), (Field((1,), out[rows]),))

    return Labels(shape, (Field((1,), out),)), recast


def _convolution(a: Analysis, node: fx.Node, x: Any, w: Weights, spatial: int) -> Result | None:
    if not isinstance(x, Labels) or len(x.shape) != spatial + 2:
        return None
    if w.groups > 1 and w.groups == x.shape[1]:
        return depthwise(a, node, x, w)
    for f in x.fields:
        if 1 not in f.axes:
            a.freeze(node, "a convolution runs along this axis", f.ids)
    return mix(a, node, Labels(x.shape, tuple(f for f in x.fields if 1 in f.axes)), 1, w)


def conv_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.module(node)
    name, transposed = str(node.target), bool(m.transposed)
    bias = None if m.bias is None else f"{name}.bias"
    # A transposed convolution sees fewer taps at the border even without padding.
    padded = transposed or pads(m.padding, m.padding_mode)
    w = Weights(name, f"{name}.weight", bias, int(transposed), m.groups, padded)
    return _convolution(a, node, a.value(node.args[0]), w, len(m.kernel_size))


def conv_function(a: Analysis, node: fx.Node) -> Result | None:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    arguments = a.call(node, *names)
    weight, bias, x = arguments.get("weight"), arguments.get("bias"), arguments.get("input")
    if not isinstance(weight, Labels) or weight.parameter is None or (isinstance(bias, Labels) and not bias.parameter):
        return None
    owner = weight.parameter.rpartition(".")[0]
    bias_name = bias.parameter if isinstance(bias, Labels) else None
    w = Weights(owner, weight.parameter, bias_name, 0, arguments.get("groups", 1), pads(arguments.get("padding", 0)))
    return _convolution(a, node, x, w, len(weight.shape) - 2)


def average(a: Analysis, node: fx.Node) -> Result | None:
    """Average pooling: a constant survives unless zero padding is averaged in."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels) or len(node.meta["val"].shape) != len(x.shape):
        return None
    if node.op == "call_module":
        m: Any = a.module(node)
        padding, counted, divisor = m.padding, m.count_include_pad, getattr(m, "divisor_override", None)
    else:
        names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        arguments = a.call(node, *names)
        padding, counted = arguments.get("padding", 0), arguments.get("count_include_pad", True)
        divisor = arguments.get("divisor_override")
    zeros = (pads(padding) and counted) or divisor is not None
    return over_positions(
        a, node, x, tuple(node.meta["val"].shape), lambda v: torch.where(v == 0, v, torch.nan) if zeros else v
    )


MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv_module),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), conv_module),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), average),
}
FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv_function),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), average),
}
