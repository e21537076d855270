"""Operations that act on each element alone: channels of their operands are kept or removed together.

In an untied residual stream each operand of an addition, and the sum, keep channels of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule, describe, leaves
from pipeline.surgery.channels.labels import Field, Ids, Labels, distinct, positions
from pipeline.surgery.rules.broadcast import Evaluate, merge, product, quotient, strict
from pipeline.surgery.rules.functions import select_channels


def _call(node: fx.Node, a: Analysis) -> Callable[..., Any]:
    """The node's own operation, on tensors of constants."""
    kwargs = {k: v for k, v in a.value(node.kwargs).items() if k != "inplace"}
    if node.op == "call_module":
        module: nn.Module = a.module(node)
        return module
    if node.op == "call_method":
        return lambda x, *rest: getattr(x, str(node.target))(*rest, **kwargs)
    return lambda *values: node.target(*values, **kwargs)  # type: ignore[operator]


def unary(a: Analysis, node: fx.Node) -> Result | None:
    """f(x): a constant channel stays constant."""
    x = a.value(node.args[0]) if node.args else None
    if not isinstance(x, Labels) or any(isinstance(v, Labels) for v in a.value(node.kwargs).values()):
        return None
    rest, call = a.value(node.args[1:]), _call(node, a)
    if leaves(rest):
        return None
    return over_positions(a, node, x, x.shape, lambda v: call(v, *rest))


def like(a: Analysis, node: fx.Node) -> Result | None:
    """zeros_like, ones_like, full_like: constants, whatever they are like; of random numbers nothing is known."""
    x = a.value(node.args[0]) if node.args else None
    if not isinstance(x, Labels) or leaves(a.value((node.args[1:], node.kwargs))):
        return None
    fill = {"zeros_like": 0.0, "ones_like": 1.0, "full_like": a.value(node.args[1:2] or (torch.nan,))[0]}
    value = float(fill.get(describe(a, node), torch.nan))
    return merge(a, node, node.args[:1], x.shape, lambda values: torch.full_like(values[0], value))


def same(a: Analysis, node: fx.Node) -> Result | None:
    """Values pass unchanged, element by element or over positions (max pooling, interpolation, casts, copies)."""
    x = a.value(node.args[0]) if node.args else None
    val = node.meta["val"]
    if not isinstance(x, Labels) or not isinstance(val, torch.Tensor) or len(val.shape) != len(x.shape):
        return None
    return over_positions(a, node, x, tuple(val.shape), None)


def over_positions(
    a: Analysis, node: fx.Node, x: Labels, shape: tuple[int, ...], function: Callable[[Tensor], Tensor] | None
) -> Result:
    """Each channel becomes a channel; sizes of positional axes may change, those of channel axes must not.

    `function` is what becomes of a constant, float64; None where it stays what it is.
    """
    for f in x.fields:
        if any(shape[ax] != x.shape[ax] for ax in f.axes):
            a.freeze(node, "resizes the channel axis", f.ids)
            x = Labels(x.shape, tuple(g for g in x.fields if g is not f))
    pairs = []
    for f in x.fields:
        unique, inverse = distinct(f.ids)
        constants = a.ledger.constant(unique)  # a copy
        unknown = np.isnan(constants)
        if function is not None and not unknown.all():
            constants = np.where(unknown, np.nan, function(torch.from_numpy(constants)).numpy())
        out = a.ledger.fresh(constants, a.ledger.measured(unique), like=unique)
        pairs.append((Field(f.axes, out[inverse].reshape(f.ids.shape)), unique, out))
    positional = [ax for ax in range(len(shape)) if x.at(ax) is None]

    def recast(cut: CutView) -> Labels:
        cut.freeze_numbers(node)
        source = cut.value(node.args[0])
        resized = [ax in positional and shape[ax] != x.shape[ax] for ax in range(len(shape))]
        sizes = [shape[ax] if resized[ax] else source.shape[ax] for ax in range(len(shape))]
        fields = []
        for f, unique, out in pairs:
            ids = source.at(f.axes[0]).ids
            fields.append(Field(f.axes, out[np.searchsorted(unique, ids)]))
        return Labels(tuple(sizes), tuple(fields))

    return Labels(shape, tuple(f for f, _, _ in pairs)), recast


def binary(evaluate: Callable[[Callable[..., Any]], Evaluate]) -> Rule:
    """f(x, y) with further plain arguments."""

    def rule(a: Analysis, node: fx.Node) -> Result | None:
        if (
            len(node.args) < 2
            or node.kwargs.get("rounding_mode")
            or any(isinstance(v, Labels) for v in a.value(node.kwargs).values())
        ):
            return None
        rest, call = a.value(node.args[2:]), _call(node, a)
        shape = tuple(node.meta["val"].shape)
        return merge(a, node, node.args[:2], shape, evaluate(lambda x, y: call(x, y, *rest)))

    return rule


def ternary(a: Analysis, node: fx.Node) -> Result | None:
    if len(node.args) != 3 or any(isinstance(v, Labels) for v in a.value(node.kwargs).values()):
        return None
    call = _CHOICES.get((node.op, describe(a, node).rstrip("_"))) or _call(node, a)
    return merge(a, node, node.args, tuple(node.meta["val"].shape), strict(call))


_CHOICES: dict[tuple[str, str], Callable[..., Any]] = {  # constants are numbers; torch wants its conditions boolean
    ("call_function", "where"): lambda mask, x, y: torch.where(mask != 0, x, y),
    ("call_method", "where"): lambda x, mask, y: torch.where(mask != 0, x, y),
    ("call_function", "masked_fill"): lambda x, mask, y: torch.where(mask != 0, y, x),
    ("call_method", "masked_fill"): lambda x, mask, y: torch.where(mask != 0, y, x),
}


_tied_add = binary(strict)


def add(a: Analysis, node: fx.Node) -> Result | None:
    """x + y: tied element by element, or, in an untied stream, with selections where the kept channels differ."""
    operands = [a.value(x) for x in node.args[:2]]
    axis = _stream_axis(operands) if a.residual == "untied" and len(node.args) == 2 and not node.kwargs else None
    return _tied_add(a, node) if axis is None else _untied(a, node, operands, axis)


def _stream_axis(operands: list[Any]) -> int | None:
    """The one axis along which the channels of both operands lie, if they are activations of one shape."""
    if len(operands) != 2 or not all(isinstance(x, Labels) and x.parameter is None for x in operands):
        return None
    x, y = operands
    axes = [f.axes for f in (*x.fields, *y.fields)]
    one = len(x.fields) == len(y.fields) == 1 and axes[0] == axes[1] and len(axes[0]) == 1
    return axes[0][0] if one and x.shape == y.shape else None


def _untied(a: Analysis, node: fx.Node, operands: list[Labels], axis: int) -> Result:
    ids = [x.fields[0].ids for x in operands]
    constants = [a.ledger.constant(i) for i in ids]
    measured = [a.ledger.measured(i) for i in ids]
    out = a.ledger.fresh(constants[0] + constants[1], measured[0] | measured[1])
    for i, k in zip(ids, constants, strict=True):
        a.ledger.read(i, np.ones(len(i), bool))
        a.ledger.depend(i[k != 0], out[k != 0])
    a.streams[node.name] = out
    shape = tuple(node.meta["val"].shape)

    def recast(cut: CutView) -> Labels:
        staying = cut.remaining(out)
        parts = [_selected(cut, arg, i, axis, staying) for arg, i in zip(node.args, ids, strict=True)]
        if any(p is not arg for p, arg in zip(parts, node.args, strict=True)):
            cut.rewrite(node, torch.add, tuple(parts))
        return Labels((*shape[:axis], len(staying), *shape[axis + 1 :]), (Field((axis,), out[staying]),))

    return Labels(shape, (Field((axis,), out),)), recast


def _selected(cut: CutView, arg: Any, ids: Ids, axis: int, staying: Ids) -> Any:
    """The operand itself where it keeps just the channels wanted, else a call that selects them."""
    arrived = positions(ids, cut.value(arg).at(axis).ids)
    place = np.full(len(ids), -1)
    place[arrived] = np.arange(len(arrived))
    index = place[staying]
    if np.array_equal(index, np.arange(len(arrived))):
        return arg
    return cut.call(select_channels, (arg, axis, index.tolist()))


def selected(a: Analysis, node: fx.Node) -> Result | None:
    """A selection in a network that was cut before: its channels go with those they were selected from."""
    x, axis, index = a.value(node.args)
    if not isinstance(x, Labels) or [f.axes for f in x.fields] != [(axis,)]:
        return None
    ids = x.fields[0].ids
    zeros = a.ledger.fresh(np.zeros(len(index)))
    out = np.where(np.array(index) >= 0, ids[np.array(index)], zeros)
    shape = tuple(node.meta["val"].shape)

    def recast(cut: CutView) -> Labels:
        staying = cut.remaining(out)
        arrived = positions(ids, cut.value(node.args[0]).at(axis).ids)
        place = np.full(len(ids), -1)
        place[arrived] = np.arange(len(arrived))
        old = np.array(index)[staying]
        new = np.where(old >= 0, place[old], -1)
        cut.rewrite(node, select_channels, (node.args[0], axis, new.tolist()))
        return Labels((*shape[:axis], len(staying), *shape[axis + 1 :]), (Field((axis,), out[staying]),))

    return Labels(shape, (Field((axis,), out),)), recast


ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh,
    nn.Softplus, nn.Threshold, nn.RReLU,
)  # fmt: skip
GATE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Tanh,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Hardshrink,
)
ACTIVATIONS = frozenset(
    ("relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardtanh softplus threshold rrelu").split()
)
EXACT_ACTIVATIONS = frozenset({"relu", "relu6"})  # a census of zeros is a value, not an average
_UNARY = (
    "sigmoid hardsigmoid tanh softsign logsigmoid hardshrink abs neg exp expm1 log log1p sqrt rsqrt "
    "square reciprocal sin cos erf clip clamp clamp_min clamp_max ceil floor round sign positive nan_to_num"
).split()
_SAME = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout contiguous clone detach float double half "
_SAME += "bfloat16 to type type_as interpolate upsample adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
_SAME += "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool1d max_pool2d max_pool3d cpu "
_SAME += "cuda requires_grad "
_STRICT = ("gt lt ge le eq ne sub rsub pow maximum minimum true_divide isub fmod remainder atan2 hypot").split()

MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((*ACTIVATION_MODULES, *GATE_MODULES), unary),
    **dict.fromkeys(
        (
            nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
            nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
            nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
            nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
        ),
        same,
    ),
}  # fmt: skip
FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys((*ACTIVATIONS, *_UNARY), unary),
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"), like),
    **dict.fromkeys(_STRICT, binary(strict)),
    **dict.fromkeys(("mul", "multiply", "imul"), binary(lambda call: product)),
    **dict.fromkeys(("div", "divide", "truediv", "itruediv"), binary(lambda call: quotient)),
    **dict.fromkeys(("where", "masked_fill", "addcmul", "addcdiv", "lerp"), ternary),
    **dict.fromkeys(("add", "iadd"), add),
    "select_channels": selected,
}
