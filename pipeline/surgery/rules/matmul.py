"""Matrix products, einsum and attention: pairs of channels that meet go together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from pipeline.surgery.channels import labels as lb
from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule, named_arguments
from pipeline.surgery.channels.labels import Field, Ids, Labels, LayoutError

Operand = Callable[["CutView"], Labels]  # what becomes of an operand in a cut
Part = tuple[Operand, tuple[Field, Ids, Ids]]  # with its field, the field's ids in order, and their ids in the result
PRODUCT = "a constant other than 0 in a product of activations"


def matmul(a: Analysis, node: fx.Node) -> Result | None:
    """(..., M, K) @ (..., K, N): pairs of channels along K are tied; one zero of a pair lets both go."""
    if len(node.args) < 2:
        return None
    x, y = a.value(node.args[0]), a.value(node.args[1])
    if not isinstance(x, Labels) or not isinstance(y, Labels) or len(x.shape) < 2 or len(x.shape) != len(y.shape):
        return None
    full = tuple(node.meta["val"].shape)
    first, second = node.args[:2]
    return product(a, node, x, y, full, lambda cut: cut.value(first), lambda cut: cut.value(second), (first, second))


def product(
    a: Analysis, node: fx.Node, x: Labels, y: Labels, full: tuple[int, ...], first: Operand, second: Operand,
    sources: tuple[Any, Any] = (None, None),
) -> Result:  # fmt: skip
    """The matrix product of x and y, of shape `full`; `sources`: the nodes that give them, as they are."""
    rank = len(x.shape)
    contract(a, node, x, rank - 1, y, rank - 2)
    parts: list[Part] = [(first, p) for p in _through(a, node, x, rank - 2, rank - 1)]
    parts += [(second, p) for p in _through(a, node, y, rank - 1, rank - 2)]
    _heads_go_together(a, node, ((sources[0], x), (sources[1], y)))
    return _product(node, parts, full, ((x, first), (y, second)))


def _heads_go_together(a: Analysis, node: fx.Node, operands: tuple[tuple[Any, Labels], ...]) -> None:
    """Tie what lies at one place of a batch axis in several operands, where it goes as a whole in each of them.

    Scores of attention have no channels any more; their heads are those of the queries that made them.
    """
    for ax in range(len(operands[0][1].shape) - 2):
        whole = []
        for source, x in operands:
            f = x.at(ax)
            if f is None:
                whole += [line for line in [_line_of(a, source, ax, x.shape)] if line is not None]
            elif len(f.axes) > 1:
                lines = np.moveaxis(f.ids, f.axes.index(ax), 0)
                lines = lines.reshape(len(lines), -1)
                whole += [lines[:, 0]] if a.ledger.goes_whole(lines) else []
        for other in whole[1:]:
            if len(other) == len(whole[0]):
                a.ledger.tie(whole[0], other)
        if whole:
            a.heads[node, ax] = whole[0]


def _line_of(a: Analysis, source: Any, axis: int, shape: tuple[int, ...]) -> Ids | None:
    """A channel for each place of the axis of a product, through calls that change no shape (softmax, scales)."""
    while isinstance(source, fx.Node):
        value = a.env.get(source)
        if not isinstance(value, Labels) or value.shape != shape:
            return None
        if (source, axis) in a.heads:
            return a.heads[source, axis]
        source = source.args[0] if source.args else None
    return None


def _product(
    node: fx.Node, parts: list[Part], full: tuple[int, ...], operands: tuple[tuple[Labels, Operand], ...]
) -> Result:
    def recast(cut: CutView) -> Labels:
        cut.freeze_numbers(node)
        shape, fields = [*_batch([(before, operand(cut)) for before, operand in operands]), *full[-2:]], []
        for operand, (f, unique, out) in parts:
            remaining = operand(cut).at(f.axes[-1])
            if remaining is None:
                raise LayoutError("channels of a product vanished", f.ids)
            fields.append(Field(f.axes, out[np.searchsorted(unique, remaining.ids)]))
            for ax, n in zip(f.axes, remaining.ids.shape, strict=True):
                shape[ax] = n
        return Labels(tuple(shape), tuple(fields))

    fields = tuple(Field(f.axes, out[np.searchsorted(unique, f.ids)]) for _, (f, unique, out) in parts)
    return Labels(full, fields), recast


def _batch(operands: list[tuple[Labels, Labels]]) -> list[int]:
    """The sizes of the batch axes, of which all operands of a product, (before, after), keep the same places."""
    joint = [max(x.shape[ax] for _, x in operands) for ax in range(len(operands[0][1].shape) - 2)]
    for ax, size in enumerate(joint):
        wide = [pair for pair in operands if pair[0].shape[ax] > 1]
        places = [own for before, after in wide if (own := _places(before, after, ax)) is not None]
        alike = all(np.array_equal(own, places[0]) for own in places[1:])
        if not alike or any(after.shape[ax] != size for _, after in wide):
            ids = np.concatenate([before.all_ids() for before, _ in operands])
            raise LayoutError("operands of a product keep different heads", ids)
    return joint


def _places(before: Labels, after: Labels, axis: int) -> Ids | None:
    """Which places of an axis with channels stay."""
    full, remaining = before.at(axis), after.at(axis)
    if full is None or remaining is None or full.axes != remaining.axes:
        return None
    rows, own = (np.moveaxis(f.ids, f.axes.index(axis), 0) for f in (full, remaining))
    if np.array_equal(rows, own):
        return np.arange(len(rows))  # also where one channel stands at several places
    first = own.reshape(len(own), -1)[:, 0]
    return np.asarray((rows.reshape(len(rows), -1)[None] == first[:, None, None]).any(-1).argmax(1))


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
    new, again = product(
        a, node, lb.permute(x, to_x), lb.permute(y, to_y), full,
        lambda cut: lb.permute(cut.value(raw[0]), to_x), lambda cut: lb.permute(cut.value(raw[1]), to_y),
    )  # fmt: skip
    return lb.permute(new, back), lambda cut: lb.permute(again(cut), back)


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
    a.ledger.read(ids, zero, PRODUCT)
    a.ledger.read(other, zero, PRODUCT)


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
        constants = np.where(a.ledger.constant(unique) == 0, 0.0, np.nan)
        new = a.ledger.fresh(constants, a.ledger.measured(unique), like=unique)
        out.append((f, unique, new))
    return out


def attention(a: Analysis, node: fx.Node) -> Result | None:
    """scaled_dot_product_attention(q, k, v): dimensions of q and k go in pairs, those of v reach the output."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    raw = named_arguments(node, *names)
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
    operands = tuple((lambda cut, n=n: cut.value(raw[n])) for n in names[:3])
    _heads_go_together(a, node, tuple((raw[n], x) for n, x in zip(names, (q, k, v), strict=False)))
    pairs = tuple(zip((q, k, v), operands, strict=True))
    new, again = _product(node, [(operands[2], p) for p in passing], full, pairs)
    width = q.shape[-1]

    def recast(cut: CutView) -> Labels:
        if cut.value(raw["query"]).shape[-1] != width and raw.get("scale") is None:
            cut.rewrite(node, node.target, node.args, {**node.kwargs, "scale": float(width) ** -0.5})
        return again(cut)  # type: ignore[no-any-return]

    return new, recast


FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm"), matmul),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
