"""Matrix products, einsum and attention: pairs of channels that meet go together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from pipeline.surgery import labels as lb
from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut

Operand = Callable[["Cut"], Labels]  # what becomes of an operand in a cut
Part = tuple[Operand, tuple[Field, Ids, Ids]]  # with its field, the field's ids in order, and their ids in the result


def matmul(a: Analysis, node: fx.Node) -> Result | None:
    """(..., M, K) @ (..., K, N): pairs of channels along K are tied; one zero of a pair lets both go."""
    if len(node.args) < 2:
        return None
    x, y = a.value(node.args[0]), a.value(node.args[1])
    if not isinstance(x, Labels) or not isinstance(y, Labels) or len(x.shape) < 2 or len(x.shape) != len(y.shape):
        return None
    full = tuple(node.meta["val"].shape)
    return product(a, node, x, y, full, lambda cut: cut.value(node.args[0]), lambda cut: cut.value(node.args[1]))


def product(
    a: Analysis, node: fx.Node, x: Labels, y: Labels, full: tuple[int, ...], left: Operand, right: Operand
) -> Result:
    """The matrix product of x and y, of shape `full`."""
    rank = len(x.shape)
    contract(a, node, x, rank - 1, y, rank - 2)
    parts: list[Part] = [(left, p) for p in _through(a, node, x, rank - 2, rank - 1)]
    parts += [(right, p) for p in _through(a, node, y, rank - 1, rank - 2)]
    return _product(node, parts, full)


def _product(node: fx.Node, parts: list[Part], full: tuple[int, ...]) -> Result:
    def recast(cut: Cut) -> Labels:
        cut.freeze_numbers(node)
        shape, fields = list(full), []
        for operand, (f, unique, out) in parts:
            kept = operand(cut).at(f.axes[-1])
            if kept is None:
                raise LayoutError("channels of a product vanished", f.ids)
            fields.append(Field(f.axes, out[np.searchsorted(unique, kept.ids)]))
            for ax, n in zip(f.axes, kept.ids.shape, strict=True):
                shape[ax] = n
        return Labels(tuple(shape), tuple(fields))

    fields = tuple(Field(f.axes, out[np.searchsorted(unique, f.ids)]) for _, (f, unique, out) in parts)
    return Labels(full, fields), recast


def einsum(a: Analysis, node: fx.Node) -> Result | None:
    """Two operands and one letter summed over: a matrix product between permutations."""
    equation = a.value(node.args[0])
    raw = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else node.args[1:]
    if not isinstance(equation, str) or len(raw) != 2 or not re.fullmatch("[^,>]+,[^,>]+->[^,>]+", equation):
        return None
    ins, out = equation.replace(" ", "").split("->")
    p, q = ins.split(",")
    x, y = a.value(raw[0]), a.value(raw[1])
    order = _order(p, q, out)
    if order is None or not isinstance(x, Labels) or not isinstance(y, Labels):
        return None
    batch, row, column, inner = order
    to_x, to_y = [p.index(c) for c in batch + row + inner], [q.index(c) for c in batch + inner + column]
    full = tuple(node.meta["val"].shape[out.index(c)] for c in batch + row + column)
    back = [(batch + row + column).index(c) for c in out]
    made, again = product(
        a, node, lb.permute(x, to_x), lb.permute(y, to_y), full,
        lambda cut: lb.permute(cut.value(raw[0]), to_x), lambda cut: lb.permute(cut.value(raw[1]), to_y),
    )  # fmt: skip
    return lb.permute(made, back), lambda cut: lb.permute(again(cut), back)


def _order(p: str, q: str, out: str) -> tuple[str, str, str, str] | None:
    """Letters of the batch, of a row, of a column, and summed over, where the equation is a matrix product."""
    inner = "".join(c for c in p if c in q and c not in out)
    batch = "".join(c for c in p if c in q and c in out)
    row, column = ("".join(c for c in s if c not in inner + batch) for s in (p, q))
    once = all(len(set(s)) == len(s) and s.isalpha() for s in (p, q, out))
    matrix = len(inner) == len(row) == len(column) == 1 and sorted(out) == sorted(batch + row + column)
    return (batch, row, column, inner) if once and matrix else None


def contract(a: Analysis, node: fx.Node, x: Labels, ax: int, y: Labels, ay: int) -> None:
    """Enter the contraction of axis `ax` of x with `ay` of y in the ledger."""
    f, g = x.at(ax), y.at(ay)
    if f is None and g is None:
        return
    if f is None or g is None:
        a.freeze(node, "a product with channels that cannot be cut", (f or g).ids)  # type: ignore[union-attr]
        return
    batch_f, batch_g = [i for i in f.axes if i != ax], [i for i in g.axes if i != ay]
    if batch_f != batch_g or any(x.shape[i] != y.shape[i] for i in batch_f):
        a.freeze(node, "a product of channels laid out differently", np.r_[f.ids.ravel(), g.ids.ravel()])
        return
    ids, other = np.moveaxis(f.ids, f.axes.index(ax), -1), np.moveaxis(g.ids, g.axes.index(ay), -1)
    a.ledger.tie(ids, other)
    zero = (a.ledger.constant(ids) == 0) | (a.ledger.constant(other) == 0)
    a.ledger.read(ids, zero)
    a.ledger.read(other, zero)


def _through(a: Analysis, node: fx.Node, x: Labels, own: int, gone: int) -> list[tuple[Field, Ids, Ids]]:
    """The field of `x` on its own axis passes (a zero channel stays zero); fields of the contracted axis are done."""
    out = []
    for f in x.fields:
        if gone in f.axes:
            continue
        if own not in f.axes:
            a.freeze(node, "channels on a batch axis of a product", f.ids)
            continue
        unique, _ = lb.distinct(f.ids)
        known = np.where(a.ledger.constant(unique) == 0, 0.0, np.nan)
        made = a.ledger.fresh(known, a.ledger.measured(unique), like=unique)
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
    made, again = _product(node, [(lambda cut: cut.value(raw["value"]), p) for p in passing], full)
    width = q.shape[-1]

    def recast(cut: Cut) -> Labels:
        if cut.value(raw["query"]).shape[-1] != width and raw.get("scale") is None:
            cut.rewrite(node, node.target, node.args, {**node.kwargs, "scale": float(width) ** -0.5})
        return again(cut)  # type: ignore[no-any-return]

    return made, recast


FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm"), matmul),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
