"""Reductions over positions or channels, softmax, and normalisation to length one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule, describe
from pipeline.surgery.channels.labels import Field, Ids, Labels, distinct
from pipeline.surgery.rules.elementwise import over_positions
from pipeline.surgery.rules.functions import mean_with_removed, spread_with_removed, variance_with_removed

# What a constant becomes when n copies of it are reduced, by the name of the reduction.
VALUES: dict[str, Callable[[Any, int], Any]] = {
    "mean": lambda v, n: v, "amax": lambda v, n: v, "amin": lambda v, n: v, "sum": lambda v, n: v * n,
    "norm": lambda v, n: np.where(v == 0, 0.0, np.nan), "vector_norm": lambda v, n: np.where(v == 0, 0.0, np.nan),
    "var": lambda v, n: np.where(np.isfinite(v) & (n > 1), 0.0, np.nan),
    "std": lambda v, n: np.where(np.isfinite(v) & (n > 1), 0.0, np.nan),
}  # fmt: skip
# zeros among what is reduced change nothing but the mean's divisor
ADDING = ("mean", "sum", "norm", "vector_norm", "var", "std")
SUM = "a constant other than 0 in a sum over channels"


def _argument(node: fx.Node, position: int, *names: str) -> Any:
    matches = [node.kwargs[n] for n in names if n in node.kwargs]
    return matches[0] if matches else node.args[position] if len(node.args) > position else None


def _dims(a: Analysis, node: fx.Node, rank: int) -> list[int] | None:
    position = 2 if describe(a, node) in ("norm", "vector_norm") else 1
    dims = a.value(_argument(node, position, "dim", "axis"))
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
    order = a.value(_argument(node, 1, "p", "ord")) if name in ("norm", "vector_norm") else 2
    if dims is None or not isinstance(val, torch.Tensor) or order not in (None, "fro", 1, 2, float("inf")):
        return None
    keepdim = len(val.shape) == len(x.shape)
    count = int(np.prod([x.shape[d] for d in dims]))
    pairs, within, about = [], [], _about(a, node, dims) if name == "mean" else None
    for f in x.fields:
        over = tuple(i for i, ax in enumerate(f.axes) if ax in dims)
        if len(over) == len(f.axes):
            _read(a, node, f, name, None if about is None else a.value(about[0]))
            within.append(f)
        else:
            pairs.append((f, over, *_collapse(a, f, over, VALUES[name], count)))

    def out_axes(axes: tuple[int, ...]) -> tuple[int, ...]:
        rest = [ax for ax in axes if ax not in dims]
        return tuple(rest if keepdim else [ax - sum(d < ax for d in dims) for ax in rest])

    def recast(cut: CutView) -> Labels:
        cut.freeze_numbers(node)
        source, fields, shape = cut.value(node.args[0]), [], list(val.shape)
        for f, over, ids, table, _ in pairs:
            remaining = source.at(f.axes[0]).ids
            for i in sorted(over, reverse=True):
                remaining = remaining.take(0, i)
            axes = out_axes(f.axes)
            fields.append(Field(axes, table[np.searchsorted(ids, remaining)]))
            for ax, n in zip(axes, remaining.shape, strict=True):
                shape[ax] = n
        if any(source.shape[ax] != x.shape[ax] for f in within for ax in f.axes):
            _count_removed(cut, node, about, dims, keepdim, _lost(x, source, within))
        return Labels(tuple(shape), tuple(fields))

    return Labels(tuple(val.shape), tuple(Field(out_axes(f.axes), placed) for f, _, _, _, placed in pairs)), recast


def variance(a: Analysis, node: fx.Node) -> Result | None:
    """`var` and `std`; frozen where what is reduced is not said by axes."""
    return None if isinstance(_argument(node, 1, "dim", "axis"), bool) else reduce(a, node)


def _correction(node: fx.Node) -> float:
    if "correction" in node.kwargs:
        return float(node.kwargs["correction"])  # type: ignore[arg-type]
    return float(_argument(node, 2, "unbiased") is not False)


def _count_removed(
    cut: CutView, node: fx.Node, about: tuple[fx.Node, fx.Node] | None, dims: list[int], keepdim: bool, share: float
) -> None:
    """Call what goes on counting the zeros that went, where that matters."""
    source, name = node.args[0], describe(cut.analysis, node)
    if about is not None:
        cut.rewrite(node, spread_with_removed, (source, about[1], dims, keepdim, share))
    elif name == "mean":
        cut.rewrite(node, mean_with_removed, (source, dims, keepdim, share))
    elif name in ("var", "std"):
        arguments = (source, dims, keepdim, share, _correction(node), name == "std")
        cut.rewrite(node, variance_with_removed, arguments)


def _about(a: Analysis, node: fx.Node, dims: list[int]) -> tuple[fx.Node, fx.Node] | None:
    """(x, middle) where the call reduces (x - middle)^2 and `middle` has size 1 along `dims`: a variance by hand.

    A channel of x that is zero adds middle^2 for each of its elements, whatever the middle is.
    """
    square = node.args[0]
    if not isinstance(square, fx.Node) or not square.op.startswith("call_"):
        return None
    name, read = describe(a, square), square.args
    squares = name == "square" or (name == "pow" and read[1:] == (2,)) or (name == "mul" and read[0] is read[-1])
    middle = read[0] if squares else None
    if not isinstance(middle, fx.Node) or describe(a, middle) != "sub" or len(middle.args) != 2 or middle.kwargs:
        return None
    x, by = middle.args
    if not isinstance(x, fx.Node) or not isinstance(by, fx.Node):
        return None
    full, one = a.value(x), a.value(by)
    if not isinstance(full, Labels) or not isinstance(one, Labels) or len(full.shape) != len(one.shape):
        return None
    return (x, by) if all(one.shape[d] == 1 for d in dims) else None


def _read(a: Analysis, node: fx.Node, f: Field, name: str, about: Labels | None = None) -> None:
    """All channels of a field are reduced to one number."""
    before = None if about is None else about.at(f.axes[0])
    if before is not None and before.axes == f.axes and before.ids.shape == f.ids.shape:
        a.ledger.read(f.ids, a.ledger.constant(before.ids) == 0, SUM)
    elif name in ADDING:
        a.ledger.read(f.ids, a.ledger.constant(f.ids) == 0, SUM)
    else:
        a.freeze(node, f"{name} over the channels", f.ids)


def _lost(full: Labels, remaining: Labels, within: list[Field]) -> float:
    """Which part of the elements reduced is left."""
    axes = [ax for f in within for ax in f.axes]
    return float(np.prod([remaining.shape[ax] for ax in axes]) / np.prod([full.shape[ax] for ax in axes]))


def _collapse(
    a: Analysis, f: Field, over: tuple[int, ...], value: Callable[[Any, int], Any], count: int
) -> tuple[Ids, Ids, Ids]:
    """Tie what is reduced together; (sorted ids of the representatives, their output ids, output ids in place)."""
    ids = np.moveaxis(f.ids, over, range(len(over))).reshape(
        -1, *[n for i, n in enumerate(f.ids.shape) if i not in over]
    )
    a.ledger.tie(ids[:1], ids)
    inputs = a.ledger.constant(ids)
    same = (inputs == inputs[:1]).all(0)
    unique, at = distinct(ids[0])
    first = np.zeros(len(unique), np.int64)
    first[at] = np.arange(at.size)
    constants = np.where(same, value(inputs[0], count), np.nan)
    measured = a.ledger.measured(ids).any(0).ravel()[first]
    out = a.ledger.fresh(constants.ravel()[first], measured, like=unique)
    return unique, out, out[at].reshape(ids.shape[1:])


def softmax(a: Analysis, node: fx.Node) -> Result | None:
    """Over positions every channel stays itself; over one of several channel axes, its copies are tied."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    dim = a.module(node).dim if node.op == "call_module" else a.value(_argument(node, 1, "dim"))
    if not isinstance(dim, int):
        return None
    f = x.at(dim % len(x.shape))
    if f is not None:
        if len(f.axes) == 1:
            return None
        at = f.axes.index(dim % len(x.shape))
        a.ledger.tie(f.ids.take([0], at), f.ids)  # what is summed over goes whole or stays whole
    return over_positions(a, node, x, x.shape, lambda v: torch.full_like(v, torch.nan))


def normalize(a: Analysis, node: fx.Node) -> Result | None:
    """x / |x|: over channels, zeros add nothing to the length and stay zero."""
    x = a.value(node.args[0])
    p, dim = a.value(_argument(node, 1, "p")), a.value(_argument(node, 2, "dim"))
    p, dim = 2.0 if p is None else p, 1 if dim is None else dim
    if not isinstance(x, Labels) or not isinstance(dim, int) or not p > 0 or node.kwargs.get("out") is not None:
        return None
    f = x.at(dim % len(x.shape))
    if f is not None:
        a.ledger.read(f.ids, a.ledger.constant(f.ids) == 0, SUM)
    return over_positions(a, node, x, x.shape, lambda v: torch.where(v == 0, 0.0, torch.nan))


MODULES: dict[type[nn.Module], Rule] = {nn.Softmax: softmax, nn.LogSoftmax: softmax}
FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(VALUES, reduce),
    **dict.fromkeys(("var", "std"), variance),
    **dict.fromkeys(("softmax", "log_softmax"), softmax),
    "normalize": normalize,
}
