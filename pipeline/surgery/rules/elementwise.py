"""Operations that act on each element alone: their operands' channels are kept or removed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError
from pipeline.surgery.ledger import Floats

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut

Evaluate = Callable[[list[Any]], Any]  # constants of the operands, float64 tensors or numbers -> constants


@dataclass(frozen=True)
class Joint:
    """One output field: its axes, the operands it comes from, and the table (operand ids) -> output id."""

    axes: tuple[int, ...]
    operands: tuple[int, ...]
    keys: Ids  # (operands, entries), columns in lexicographic order
    ids: Ids  # (entries,)


def merge(a: Analysis, node: fx.Node, args: Sequence[Any], shape: tuple[int, ...], evaluate: Evaluate) -> Result:
    """Labels of an elementwise result of `shape`; `args` are the node's operands, broadcast from the right."""
    operands = [a.value(x) for x in args]
    joints = []
    for axes in _axis_sets(operands, len(shape)):
        parts = _parts(a, node, operands, axes, shape)
        if parts is not None:
            joints.append(_join(a, operands, axes, parts, evaluate))

    def recast(cut: Cut) -> Labels:
        cut.freeze_numbers(node)
        return recast_merge(cut, [cut.value(x) for x in args], [j for _, j in joints], shape)

    return Labels(shape, tuple(f for f, _ in joints)), recast


def recast_merge(cut: Cut, operands: Sequence[Any], joints: Sequence[Joint], full: tuple[int, ...]) -> Labels:
    """The same merge over what is kept; LayoutError where the operands' orders no longer agree."""
    shape, rank, fields = list(full), len(full), []
    for joint in joints:
        found = [(operands[i], _field_on(operands[i], joint.axes, rank)) for i in joint.operands]
        parts = [_spread(x, f, joint.axes, rank) for x, f in found]
        try:
            ids = np.broadcast_arrays(*parts)
        except ValueError:
            every = np.concatenate([p.ravel() for p in parts])
            raise LayoutError("operands keep different numbers of channels", every) from None
        base = cut.analysis.ledger.size
        table, key = _key(joint.keys, base), _key(ids, base)
        at = np.minimum(np.searchsorted(table, key), len(table) - 1)
        if not np.array_equal(table[at], key):
            raise LayoutError("operands keep channels in different orders", np.concatenate([i.ravel() for i in ids]))
        fields.append(Field(joint.axes, joint.ids[at]))
        for ax, n in zip(joint.axes, key.shape, strict=True):
            shape[ax] = n
    return Labels(tuple(shape), tuple(fields))


def _axis_sets(operands: Sequence[Any], rank: int) -> list[tuple[int, ...]]:
    sets: list[set[int]] = []
    for x in operands:
        if isinstance(x, Labels):
            for f in x.fields:
                new = {ax + rank - len(x.shape) for ax in f.axes}
                touching = [s for s in sets if s & new]
                sets = [s for s in sets if not s & new] + [new.union(*touching)]
    return [tuple(sorted(s)) for s in sets]


def _size(x: Labels, axis: int, rank: int) -> int:
    at = axis - (rank - len(x.shape))
    return x.shape[at] if at >= 0 else 1


def _field_on(x: Labels, axes: tuple[int, ...], rank: int) -> Field:
    off = rank - len(x.shape)
    return next(f for f in x.fields if {ax + off for ax in f.axes} & set(axes))


def _spread(x: Labels, f: Field, axes: tuple[int, ...], rank: int) -> Ids:
    """The field's ids with one dimension per axis of `axes`, of size 1 where they do not vary."""
    off = rank - len(x.shape)
    own = {ax + off: n for ax, n in zip(f.axes, f.ids.shape, strict=True)}
    return f.ids.reshape([own.get(ax, 1) for ax in axes])


def _parts(
    a: Analysis, node: fx.Node, operands: Sequence[Any], axes: tuple[int, ...], shape: tuple[int, ...]
) -> list[tuple[int, Ids]] | None:
    """(operand, ids over `axes`) of each operand with channels there; None and frozen where one cannot follow."""
    rank, parts, problem = len(shape), [], None
    for i, x in enumerate(operands):
        if not isinstance(x, Labels):
            continue
        off = rank - len(x.shape)
        fields = [f for f in x.fields if {ax + off for ax in f.axes} & set(axes)]
        if len(fields) > 1:
            problem = "two independent channel axes are combined"
        elif fields:
            ids = _spread(x, fields[0], axes, rank)
            parts.append((i, np.broadcast_to(ids, [shape[ax] for ax in axes])))
        elif any(_size(x, ax, rank) > 1 for ax in axes):
            problem = "combined with a tensor that cannot be cut"
    if problem is None and len(parts) <= 3:
        return parts
    problem = problem or "more than three operands"
    for x in operands:
        if isinstance(x, Labels):
            for f in x.fields:
                if {ax + rank - len(x.shape) for ax in f.axes} & set(axes):
                    a.freeze(node, problem, f.ids)
    return None


def _key(ids: Sequence[Ids] | Ids, base: int) -> Ids:
    """One number per tuple of ids, increasing in lexicographic order."""
    key = np.asarray(ids[0], dtype=np.int64)
    for more in ids[1:]:
        key = key * base + more
    return key


def _join(
    a: Analysis, operands: Sequence[Any], axes: tuple[int, ...], parts: list[tuple[int, Ids]], evaluate: Evaluate
) -> tuple[Field, Joint]:
    stacked = np.stack([ids.ravel() for _, ids in parts])
    if len(stacked) == 1 and (np.diff(stacked[0]) > 0).all():
        unique, inverse = stacked, np.arange(stacked.shape[1])
    else:
        unique, inverse = np.unique(stacked, axis=1, return_inverse=True)
    constants, measured = _constants(a, operands, [i for i, _ in parts], unique, evaluate)
    out = a.ledger.fresh(constants, measured)
    for row in unique:
        a.ledger.tie(row, out)
    joint = Joint(axes, tuple(i for i, _ in parts), unique, out)
    return Field(axes, out[inverse.ravel()].reshape(parts[0][1].shape)), joint


def _constants(
    a: Analysis, operands: Sequence[Any], where: list[int], ids: Ids, evaluate: Evaluate
) -> tuple[Floats, Any]:
    known = a.ledger.constant(ids)
    count = ids.shape[1]
    if np.isnan(known).all():
        return np.full(count, np.nan), False
    values: list[Any] = []
    for i, x in enumerate(operands):
        if i in where:
            values.append(torch.from_numpy(known[where.index(i)].copy()))
        else:
            values.append(torch.full((count,), torch.nan, dtype=torch.float64) if isinstance(x, Labels) else x)
    measured = (a.ledger.measured(ids) & ~np.isnan(known)).any(0)
    return np.asarray(evaluate(values), dtype=np.float64), measured


def strict(function: Callable[..., Any]) -> Evaluate:
    """Constant where all operands are."""

    def evaluate(values: list[Any]) -> Any:
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        unknown = torch.stack([v.isnan() for v in tensors]).any(0)
        return torch.where(
            unknown, torch.nan, function(*[v.clone() if isinstance(v, torch.Tensor) else v for v in values])
        )

    return evaluate


def product(values: list[Any]) -> Any:
    """A zero factor makes a zero product whatever the other factor is (all values are finite)."""
    x, y = (v if isinstance(v, torch.Tensor) else torch.tensor(float(v), dtype=torch.float64) for v in values)
    return torch.where((x == 0) | (y == 0), 0.0, x * y)


def quotient(values: list[Any]) -> Any:
    x, y = (v if isinstance(v, torch.Tensor) else torch.tensor(float(v), dtype=torch.float64) for v in values)
    return torch.where(x == 0, 0.0, x / y)


def _call(node: fx.Node, a: Analysis) -> Callable[..., Any]:
    """The node's own operation, on tensors of constants."""
    kwargs = {k: v for k, v in a.value(node.kwargs).items() if k != "inplace"}
    if node.op == "call_module":
        return a.traced.module.get_submodule(str(node.target))
    if node.op == "call_method":
        return lambda x, *rest: getattr(x, str(node.target))(*rest, **kwargs)
    return lambda *values: node.target(*values, **kwargs)  # type: ignore[operator]


def unary(a: Analysis, node: fx.Node) -> Result | None:
    """f(x): a constant channel stays constant."""
    x = a.value(node.args[0]) if node.args else None
    if not isinstance(x, Labels) or any(isinstance(v, Labels) for v in a.value(node.kwargs).values()):
        return None
    rest, call = a.value(node.args[1:]), _call(node, a)
    return merge(a, node, node.args[:1], x.shape, strict(lambda v: call(v, *rest)))


def same(a: Analysis, node: fx.Node) -> Result | None:
    """Values pass unchanged, element by element or over positions (max pooling, interpolation, casts, copies)."""
    x = a.value(node.args[0]) if node.args else None
    val = node.meta["val"]
    if not isinstance(x, Labels) or not isinstance(val, torch.Tensor) or len(val.shape) != len(x.shape):
        return None
    return over_positions(a, node, x, tuple(val.shape), lambda v: v)


def over_positions(
    a: Analysis, node: fx.Node, x: Labels, shape: tuple[int, ...], function: Callable[[Any], Any]
) -> Result:
    """Each channel becomes a channel; sizes of positional axes may change, those of channel axes must not."""
    for f in x.fields:
        if any(shape[ax] != x.shape[ax] for ax in f.axes):
            a.freeze(node, "resizes the channel axis", f.ids)
            x = Labels(x.shape, tuple(g for g in x.fields if g is not f))
    pairs = []
    for f in x.fields:
        unique, inverse = np.unique(f.ids, return_inverse=True)
        known = a.ledger.constant(unique)
        out = a.ledger.fresh(np.asarray(strict(function)([torch.from_numpy(known)])), a.ledger.measured(unique))
        a.ledger.tie(unique, out)
        pairs.append((Field(f.axes, out[inverse.ravel()].reshape(f.ids.shape)), unique, out))
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
    call = _call(node, a)
    return merge(a, node, node.args, tuple(node.meta["val"].shape), strict(call))


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
    **dict.fromkeys(_STRICT, binary(strict)),
    **dict.fromkeys(("mul", "multiply", "imul"), binary(lambda call: product)),
    **dict.fromkeys(("div", "divide", "truediv", "itruediv"), binary(lambda call: quotient)),
    **dict.fromkeys(("where", "addcmul", "addcdiv", "lerp"), ternary),
}
