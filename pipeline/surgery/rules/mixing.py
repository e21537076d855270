"""Reductions, softmax, matrix products and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError
from pipeline.surgery.rules.elementwise import over_positions

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


def _dims(a: Analysis, node: fx.Node, rank: int) -> list[int] | None:
    given = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else None))
    dims = a.value(given)
    if dims is None:
        return list(range(rank))
    if isinstance(dims, int):
        dims = [dims]
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return None
    return sorted(d % rank for d in dims)


def reduce(a: Analysis, node: fx.Node) -> Result | None:
    """mean, sum, amax, amin over positions, or over one axis of several along which a channel's copies lie."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    dims = _dims(a, node, len(x.shape))
    val = node.meta["val"]
    if dims is None or not isinstance(val, torch.Tensor):
        return None
    keepdim = len(val.shape) == len(x.shape)
    name = str(getattr(node.target, "__name__", node.target))
    count = int(np.prod([x.shape[d] for d in dims]))
    pairs = []
    for f in x.fields:
        over = tuple(i for i, ax in enumerate(f.axes) if ax in dims)
        if len(over) == len(f.axes):
            a.freeze(node, f"{name} over the channels", f.ids)
            continue
        pairs.append((f, over, *_collapse(a, f, over, name, count)))

    def out_axes(axes: tuple[int, ...]) -> tuple[int, ...]:
        left = [ax for ax in axes if ax not in dims]
        return tuple(left if keepdim else [ax - sum(d < ax for d in dims) for ax in left])

    def recast(cut: Cut) -> Labels:
        cut.freeze_numbers(node)
        source, fields, shape = cut.value(node.args[0]), [], list(val.shape)
        for f, over, ids, table, _ in pairs:
            kept = source.at(f.axes[0]).ids
            for i in sorted(over, reverse=True):
                kept = kept.take(0, i)
            axes = out_axes(f.axes)
            fields.append(Field(axes, table[np.searchsorted(ids, kept)]))
            for ax, n in zip(axes, kept.shape, strict=True):
                shape[ax] = n
        return Labels(tuple(shape), tuple(fields))

    return Labels(tuple(val.shape), tuple(Field(out_axes(f.axes), made) for f, _, _, _, made in pairs)), recast


def _collapse(a: Analysis, f: Field, over: tuple[int, ...], name: str, count: int) -> tuple[Ids, Ids, Ids]:
    """Tie what is reduced together; (sorted ids of the representatives, their output ids, output ids in place)."""
    ids = np.moveaxis(f.ids, over, range(len(over))).reshape(
        -1, *[n for i, n in enumerate(f.ids.shape) if i not in over]
    )
    a.ledger.tie(ids[:1], ids)
    known = a.ledger.constant(ids)
    same = (known == known[:1]).all(0)
    value = known[0] * (count if name == "sum" else 1.0)
    unique, at = np.unique(ids[0], return_inverse=True)
    first = np.zeros(len(unique), np.int64)
    first[at.ravel()] = np.arange(at.size)
    out = a.ledger.fresh(np.where(same, value, np.nan).ravel()[first], a.ledger.measured(ids).any(0).ravel()[first])
    a.ledger.tie(unique, out)
    return unique, out, out[at.ravel()].reshape(ids.shape[1:])


def softmax(a: Analysis, node: fx.Node) -> Result | None:
    """Over positions every channel stays itself; over one of several channel axes, its copies are tied."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    if node.op == "call_module":
        dim = a.traced.module.get_submodule(str(node.target)).dim
    else:
        dim = a.value(node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None))
    if not isinstance(dim, int):
        return None
    f = x.at(dim % len(x.shape))
    if f is not None:
        if len(f.axes) == 1:
            return None
        at = f.axes.index(dim % len(x.shape))
        a.ledger.tie(f.ids.take([0], at), f.ids)
        a.ledger.read(f.ids, np.zeros(f.ids.shape, bool))
    return over_positions(a, node, x, x.shape, lambda v: torch.full_like(v, torch.nan))


def matmul(a: Analysis, node: fx.Node) -> Result | None:
    """(..., M, K) @ (..., K, N): pairs of channels along K are tied; one zero of a pair lets both go."""
    if len(node.args) < 2:
        return None
    x, y = a.value(node.args[0]), a.value(node.args[1])
    if not isinstance(x, Labels) or not isinstance(y, Labels) or len(x.shape) < 2 or len(x.shape) != len(y.shape):
        return None
    rank = len(x.shape)
    if not contract(a, node, x, rank - 1, y, rank - 2):
        return None
    out = tuple(node.meta["val"].shape)
    left = _through(a, node, x, rank - 2, rank - 1)
    right = _through(a, node, y, rank - 1, rank - 2)
    pairs = [(node.args[0], p) for p in left] + [(node.args[1], p) for p in right]
    return _product(node, pairs, out)


def _product(node: fx.Node, pairs: list[tuple[Any, tuple[Field, Ids, Ids]]], full: tuple[int, ...]) -> Result:
    def recast(cut: Cut) -> Labels:
        cut.freeze_numbers(node)
        shape, fields = list(full), []
        for arg, (f, unique, out) in pairs:
            kept = cut.value(arg).at(f.axes[-1])
            if kept is None:
                raise LayoutError("channels of a product vanished", f.ids)
            fields.append(Field(f.axes, out[np.searchsorted(unique, kept.ids)]))
            for ax, n in zip(f.axes, kept.ids.shape, strict=True):
                shape[ax] = n
        return Labels(tuple(shape), tuple(fields))

    fields = tuple(Field(f.axes, out[np.searchsorted(unique, f.ids)]) for _, (f, unique, out) in pairs)
    return Labels(full, fields), recast


def contract(a: Analysis, node: fx.Node, x: Labels, ax: int, y: Labels, ay: int) -> bool:
    """Enter the contraction of axis `ax` of x with `ay` of y in the ledger; False where it is not understood."""
    f, g = x.at(ax), y.at(ay)
    if f is None and g is None:
        return True
    if f is None or g is None:
        a.freeze(node, "a product with channels that cannot be cut", (f or g).ids)  # type: ignore[union-attr]
        return True
    batch_f, batch_g = [i for i in f.axes if i != ax], [i for i in g.axes if i != ay]
    if batch_f != batch_g or any(x.shape[i] != y.shape[i] for i in batch_f):
        a.freeze(node, "a product of channels laid out differently", np.r_[f.ids.ravel(), g.ids.ravel()])
        return True
    ids, other = np.moveaxis(f.ids, f.axes.index(ax), -1), np.moveaxis(g.ids, g.axes.index(ay), -1)
    a.ledger.tie(ids, other)
    zero = (a.ledger.constant(ids) == 0) | (a.ledger.constant(other) == 0)
    a.ledger.read(ids, zero)
    a.ledger.read(other, zero)
    return True


def _through(a: Analysis, node: fx.Node, x: Labels, own: int, gone: int) -> list[tuple[Field, Ids, Ids]]:
    """The field of `x` on its own axis passes (a zero channel stays zero); fields of the contracted axis are done."""
    out = []
    for f in x.fields:
        if gone in f.axes:
            continue
        if own not in f.axes:
            a.freeze(node, "channels on a batch axis of a product", f.ids)
            continue
        unique = np.unique(f.ids)
        known = np.where(a.ledger.constant(unique) == 0, 0.0, np.nan)
        made = a.ledger.fresh(known, a.ledger.measured(unique))
        a.ledger.tie(unique, made)
        out.append((f, unique, made))
    return out


def attention(a: Analysis, node: fx.Node) -> Result | None:
    """scaled_dot_product_attention(q, k, v): dimensions of q and k go in pairs, those of v reach the output."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    raw = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    q, k, v = (a.value(raw[n]) for n in names[:3])
    if not all(isinstance(x, Labels) and len(x.shape) == len(q.shape) for x in (q, k, v)) or raw.get("enable_gqa"):
        return None
    rank = len(q.shape)
    contract(a, node, q, rank - 1, k, rank - 1)
    for x in (q, k, v, a.value(raw.get("attn_mask"))):
        for f in x.fields if isinstance(x, Labels) else ():
            if rank - 1 not in f.axes or (x is not q and x is not k and x is not v):
                a.freeze(node, "channels on another axis of attention", f.ids)
    passing = _through(a, node, v, rank - 1, -1)
    full = tuple(node.meta["val"].shape)
    made, again = _product(node, [(raw["value"], p) for p in passing], full)
    width = q.shape[-1]

    def recast(cut: Cut) -> Labels:
        if cut.value(raw["query"]).shape[-1] != width and raw.get("scale") is None:
            cut.rewrite(node, node.target, node.args, {**node.kwargs, "scale": float(width) ** -0.5})
        return again(cut)  # type: ignore[no-any-return]

    return made, recast


MODULES: dict[type[nn.Module], Rule] = {nn.Softmax: softmax, nn.LogSoftmax: softmax}
FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("mean", "sum", "amax", "amin"), reduce),
    **dict.fromkeys(("softmax", "log_softmax"), softmax),
    **dict.fromkeys(("matmul", "bmm"), matmul),
    "scaled_dot_product_attention": attention,
}
