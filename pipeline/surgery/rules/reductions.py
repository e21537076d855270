"""Reductions over positions or channels, softmax, and normalisation to length one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.analysis import Analysis, Result, Rule, describe
from pipeline.surgery.labels import Field, Ids, Labels, distinct
from pipeline.surgery.norms import mean_over_kept
from pipeline.surgery.rules.elementwise import over_positions

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut

# What a constant becomes when n copies of it are reduced, by the name of the reduction.
VALUES: dict[str, Callable[[Any, int], Any]] = {
    "mean": lambda v, n: v, "amax": lambda v, n: v, "amin": lambda v, n: v, "sum": lambda v, n: v * n,
    "norm": lambda v, n: np.where(v == 0, 0.0, np.nan), "vector_norm": lambda v, n: np.where(v == 0, 0.0, np.nan),
}  # fmt: skip
ADDING = ("mean", "sum", "norm", "vector_norm")  # zeros among what is reduced change nothing but the mean's divisor


def _given(node: fx.Node, position: int, *names: str) -> Any:
    found = [node.kwargs[n] for n in names if n in node.kwargs]
    return found[0] if found else node.args[position] if len(node.args) > position else None


def _dims(a: Analysis, node: fx.Node, rank: int) -> list[int] | None:
    position = 2 if describe(a, node) in ("norm", "vector_norm") else 1
    dims = a.value(_given(node, position, "dim", "axis"))
    if dims is None:
        return list(range(rank))
    if isinstance(dims, int):
        dims = [dims]
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return None
    return sorted(d % rank for d in dims)


def reduce(a: Analysis, node: fx.Node) -> Result | None:
    """Over positions a channel stays itself; over several axes its copies are tied; over all channels zeros may go."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    dims, val, name = _dims(a, node, len(x.shape)), node.meta["val"], describe(a, node)
    order = a.value(_given(node, 1, "p", "ord")) if name in ("norm", "vector_norm") else 2
    if dims is None or not isinstance(val, torch.Tensor) or order not in (None, "fro", 1, 2, float("inf")):
        return None
    keepdim = len(val.shape) == len(x.shape)
    count = int(np.prod([x.shape[d] for d in dims]))
    pairs, within = [], []
    for f in x.fields:
        over = tuple(i for i, ax in enumerate(f.axes) if ax in dims)
        if len(over) == len(f.axes):
            _read(a, node, f, name)
            within.append(f)
        else:
            pairs.append((f, over, *_collapse(a, f, over, VALUES[name], count)))

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
        if name == "mean" and any(source.shape[ax] != x.shape[ax] for f in within for ax in f.axes):
            cut.rewrite(node, mean_over_kept, (node.args[0], dims, keepdim, _lost(x, source, within)))
        return Labels(tuple(shape), tuple(fields))

    return Labels(tuple(val.shape), tuple(Field(out_axes(f.axes), made) for f, _, _, _, made in pairs)), recast


def _read(a: Analysis, node: fx.Node, f: Field, name: str) -> None:
    """All channels of a field are reduced to one number."""
    if name in ADDING:
        a.ledger.read(f.ids, a.ledger.constant(f.ids) == 0)
    else:
        a.freeze(node, f"{name} over the channels", f.ids)


def _lost(full: Labels, kept: Labels, within: list[Field]) -> float:
    """Which part of the elements reduced is left."""
    axes = [ax for f in within for ax in f.axes]
    return float(np.prod([kept.shape[ax] for ax in axes]) / np.prod([full.shape[ax] for ax in axes]))


def _collapse(
    a: Analysis, f: Field, over: tuple[int, ...], value: Callable[[Any, int], Any], count: int
) -> tuple[Ids, Ids, Ids]:
    """Tie what is reduced together; (sorted ids of the representatives, their output ids, output ids in place)."""
    ids = np.moveaxis(f.ids, over, range(len(over))).reshape(
        -1, *[n for i, n in enumerate(f.ids.shape) if i not in over]
    )
    a.ledger.tie(ids[:1], ids)
    known = a.ledger.constant(ids)
    same = (known == known[:1]).all(0)
    unique, at = distinct(ids[0])
    first = np.zeros(len(unique), np.int64)
    first[at] = np.arange(at.size)
    constants = np.where(same, value(known[0], count), np.nan)
    measured = a.ledger.measured(ids).any(0).ravel()[first]
    out = a.ledger.fresh(constants.ravel()[first], measured, like=unique)
    return unique, out, out[at].reshape(ids.shape[1:])


def softmax(a: Analysis, node: fx.Node) -> Result | None:
    """Over positions every channel stays itself; over one of several channel axes, its copies are tied."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    dim = a.module(node).dim if node.op == "call_module" else a.value(_given(node, 1, "dim"))
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


def normalize(a: Analysis, node: fx.Node) -> Result | None:
    """x / |x|: over channels, zeros add nothing to the length and stay zero."""
    x = a.value(node.args[0])
    p, dim = a.value(_given(node, 1, "p")), a.value(_given(node, 2, "dim"))
    p, dim = 2.0 if p is None else p, 1 if dim is None else dim
    if not isinstance(x, Labels) or not isinstance(dim, int) or not p > 0 or node.kwargs.get("out") is not None:
        return None
    f = x.at(dim % len(x.shape))
    if f is not None:
        a.ledger.read(f.ids, a.ledger.constant(f.ids) == 0)
    return over_positions(a, node, x, x.shape, lambda v: torch.where(v == 0, 0.0, torch.nan))


MODULES: dict[type[nn.Module], Rule] = {nn.Softmax: softmax, nn.LogSoftmax: softmax}
FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(VALUES, reduce),
    **dict.fromkeys(("softmax", "log_softmax"), softmax),
    "normalize": normalize,
}
