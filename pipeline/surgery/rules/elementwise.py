"""Operations that act on each element alone: their operands' channels are kept or removed together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pipeline.surgery.analysis import Analysis, Result, Rule, describe, leaves
from pipeline.surgery.labels import Field, Labels, distinct
from pipeline.surgery.rules.merge import Evaluate, merge, product, quotient, strict

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


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
        known = a.ledger.constant(unique)  # a copy
        unknown = np.isnan(known)
        if function is not None and not unknown.all():
            known = np.where(unknown, np.nan, function(torch.from_numpy(known)).numpy())
        out = a.ledger.fresh(known, a.ledger.measured(unique), like=unique)
        pairs.append((Field(f.axes, out[inverse].reshape(f.ids.shape)), unique, out))
    positional = [ax for ax in range(len(shape)) if x.at(ax) is None]

    def recast(cut: Cut) -> Labels:
        cut.freeze_numbers(node)
        source = cut.value(node.args[0])
        sizes = [shape[ax] if ax in positional else source.shape[ax] for ax in range(len(shape))]
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
    "square reciprocal sin cos erf clamp clamp_min clamp_max ceil floor round sign positive nan_to_num"
).split()
_SAME = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout contiguous clone detach float double half "
_SAME += "bfloat16 to type type_as interpolate upsample adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
_SAME += "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool1d max_pool2d max_pool3d cpu "
_SAME += "cuda requires_grad "
_STRICT = (
    "gt lt ge le eq ne add sub rsub pow maximum minimum true_divide iadd isub fmod remainder atan2 hypot"
).split()

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
}
