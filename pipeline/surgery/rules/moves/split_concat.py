"""Taking tensors apart and putting them together: split, chunk, unbind, cat, stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from pipeline.surgery.channels import labels as lb
from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule
from pipeline.surgery.channels.labels import Field, Ids, Labels, LayoutError
from pipeline.surgery.rules.functions import select_channels


def _dim(a: Analysis, node: fx.Node, position: int, default: int = 0) -> int:
    entry = node.kwargs.get(
        "dim", node.kwargs.get("axis", node.args[position] if len(node.args) > position else default)
    )
    return int(a.value(entry))


def split(a: Analysis, node: fx.Node) -> Result | None:
    """split and chunk: in the cut network, a split into the sizes that are left."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    axis = _dim(a, node, 2) % len(x.shape)
    sizes = [int(v.shape[axis]) for v in node.meta["val"]]
    ends = np.cumsum(sizes)
    pieces = [lb.take(x, axis, np.arange(end - n, end)) for n, end in zip(sizes, ends, strict=True)]
    a.freeze(node, "a single channel is split off", lb.lost(x, pieces))
    f = x.at(axis)
    if f is not None and len(f.axes) > 1 and f.axes[-1] == axis:  # every row of channels is split alike
        a.ledger.equal_rows(
            *(
                np.array(p.fields[0].ids).reshape(-1, n)
                for p, n in zip(pieces, sizes, strict=True)
                if n > 1 and len(p.fields) == 1 and p.fields[0].axes == f.axes
            ),
            droppable=True,
        )

    def recast(cut: CutView) -> Any:
        source = cut.value(node.args[0])
        which = np.searchsorted(ends, along(x, source, axis, ends), side="right")
        places = [np.flatnonzero(which == i) for i in range(len(sizes))]
        for piece, place in zip(pieces, places, strict=True):
            if not len(place):
                raise LayoutError("a piece of a split would be empty", piece.all_ids()[:1])
        counts = [len(place) for place in places]
        if (np.diff(which) < 0).any():  # a shuffle left the pieces' channels interleaved
            parts = [cut.call(select_channels, (node.args[0], axis, place.tolist())) for place in places]
            cut.rewrite(node, tuple, (parts,))
        elif counts != sizes:
            cut.rewrite(node, torch.split, (node.args[0], counts, axis))
        else:
            cut.freeze_numbers(node)
        return tuple(lb.take(source, axis, place, like=piece) for place, piece in zip(places, pieces, strict=True))

    return tuple(pieces), recast


def along(full: Labels, remaining: Labels, axis: int, ends: Ids | None = None) -> Ids:
    """For each entry left on `axis`, where it stood before; with `ends` of pieces, some place in the same piece."""
    f = full.at(axis)
    if f is None:
        return np.arange(full.shape[axis])
    if f.axes == (axis,):
        entry = remaining.at(axis)
        assert entry is not None
        return lb.positions(f.ids, entry.ids)
    if remaining.shape[axis] != full.shape[axis]:
        rest = remaining.at(axis)
        if ends is None or rest is None or rest.axes != f.axes:
            raise LayoutError("taken apart along an axis that shrank", full.all_ids())
        places = np.unravel_index(lb.positions(f.ids.ravel(), rest.ids.ravel()), f.ids.shape)[f.axes.index(axis)]
        rows = np.moveaxis(places.reshape(rest.ids.shape), f.axes.index(axis), -1).reshape(-1, remaining.shape[axis])
        piece = np.searchsorted(ends, rows, side="right")
        if (piece != piece[:1]).any():
            raise LayoutError("rows keep different numbers of the channels of a piece", f.ids)
        return np.asarray(rows[0])
    return np.arange(full.shape[axis])


def unbind(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    axis = _dim(a, node, 1) % len(x.shape)
    count = x.shape[axis]
    pieces = tuple(lb.squeeze(lb.take(x, axis, np.array([i])), axis) for i in range(count))
    a.freeze(node, "single channels are taken out", lb.lost(x, pieces))

    def recast(cut: CutView) -> Any:
        source = cut.value(node.args[0])
        along(x, source, axis)
        return tuple(_select(source, axis, i, pieces[i]) for i in range(count))

    return pieces, recast


def _select(x: Labels, axis: int, index: int, like: Labels) -> Labels:
    """`x.select(axis, index)` in labels; `like` is the result before the cut."""
    taken = lb.take(x, axis, np.array([index]), like=lb.unsqueeze(like, axis))
    return lb.squeeze(taken, axis)


def cat(a: Analysis, node: fx.Node) -> Result | None:
    """Channels in a row along `dim`; channels on other axes are tied across the parts."""
    raw = node.args[0] if node.args else node.kwargs.get("tensors")
    parts = a.value(raw)
    if not isinstance(parts, list | tuple) or not all(isinstance(p, Labels) for p in parts):
        return None
    return join(a, node, list(raw), _dim(a, node, 1) % len(parts[0].shape))  # type: ignore[arg-type]


def join(a: Analysis, node: fx.Node, raw: Sequence[Any], axis: int) -> Result:
    from pipeline.surgery.rules.broadcast import merge

    parts = [a.value(r) for r in raw]
    along: list[Ids] | None = None
    if any(p.at(axis) is not None for p in parts):
        along = []
        for p in parts:
            f = p.at(axis)
            if f is not None and f.axes == (axis,):
                along.append(f.ids)
            else:
                fixed = a.ledger.varying((p.shape[axis],))
                a.freeze(node, "joined to a tensor that cannot be cut", fixed)
                along.append(fixed)
                if f is not None:
                    a.freeze(node, "joined along one of two channel axes", f.ids)
    shape = tuple(node.meta["val"].shape)
    flat = tuple(1 if ax == axis else n for ax, n in enumerate(shape))
    others = {r: _without(a.value(r), axis) for r in raw}
    rest, again = merge(_Stand(a, others), node, raw, flat, _equal)  # type: ignore[arg-type]
    fields = rest.fields if along is None else (*rest.fields, Field((axis,), np.concatenate(along)))

    def recast(cut: CutView) -> Labels:
        sources = [cut.value(r) for r in raw]
        result = again(_Stand(cut, {r: _without(s, axis) for r, s in zip(raw, sources, strict=True)}))
        remaining = result.fields
        if along is not None:
            ids = [along[i] if (f := s.at(axis)) is None else f.ids for i, s in enumerate(sources)]
            remaining = (*remaining, Field((axis,), np.concatenate(ids)))
        size = sum(s.shape[axis] for s in sources)
        return Labels((*result.shape[:axis], size, *result.shape[axis + 1 :]), remaining)

    return Labels(shape, fields), recast


class _Stand:
    """The analysis (or the cut) with other labels for the arguments of one node."""

    def __init__(self, inner: Any, values: dict[Any, Labels]) -> None:
        self._inner, self._values = inner, values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def value(self, x: Any) -> Any:
        return self._values[x] if isinstance(x, fx.Node) and x in self._values else self._inner.value(x)


def _without(x: Labels, axis: int) -> Labels:
    shape = tuple(1 if ax == axis else n for ax, n in enumerate(x.shape))
    return Labels(shape, tuple(f for f in x.fields if axis not in f.axes))


def _equal(values: list[Any]) -> Any:
    """Constant where every part has the same constant."""
    first = values[0]
    same = torch.ones_like(first, dtype=torch.bool)
    for v in values[1:]:
        same &= v == first
    return torch.where(same, first, torch.nan)


def stack(a: Analysis, node: fx.Node) -> Result | None:
    """Channels tied across the parts; the new axis is positional."""
    from pipeline.surgery.rules.broadcast import merge

    raw = node.args[0] if node.args else node.kwargs.get("tensors")
    parts = a.value(raw)
    if not isinstance(parts, list | tuple) or not all(isinstance(p, Labels) for p in parts):
        return None
    axis = _dim(a, node, 1) % len(node.meta["val"].shape)
    out, again = merge(a, node, list(raw), parts[0].shape, _equal)  # type: ignore[arg-type]

    def widen(x: Labels) -> Labels:
        wide = lb.unsqueeze(x, axis)
        return Labels((*wide.shape[:axis], len(parts), *wide.shape[axis + 1 :]), wide.fields)

    return widen(out), lambda cut: widen(again(cut))


FUNCTIONS: dict[str, Rule] = {
    "split": split, "chunk": split, "tensor_split": split, "unsafe_chunk": split, "split_with_sizes": split,
    "unbind": unbind,
    "cat": cat, "concat": cat, "concatenate": cat, "stack": stack,
}  # fmt: skip
