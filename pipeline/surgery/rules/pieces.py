"""Taking tensors apart and putting them together: split, chunk, unbind, indexing, cat, stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from pipeline.surgery import labels as lb
from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError
from pipeline.surgery.streams import select_channels

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


def _dim(a: Analysis, node: fx.Node, position: int, default: int = 0) -> int:
    found = node.kwargs.get(
        "dim", node.kwargs.get("axis", node.args[position] if len(node.args) > position else default)
    )
    return int(a.value(found))


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

    def recast(cut: Cut) -> Any:
        source = cut.value(node.args[0])
        which = np.searchsorted(ends, _along(x, source, axis), side="right")
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
        return tuple(lb.take(source, axis, place, like=piece) for place, piece in zip(places, pieces, strict=True))

    return tuple(pieces), recast


def _along(full: Labels, kept: Labels, axis: int) -> Ids:
    """For each entry left on `axis`, where it stood before."""
    f = full.at(axis)
    if f is None:
        return np.arange(full.shape[axis])
    if f.axes == (axis,):
        found = kept.at(axis)
        assert found is not None
        return lb.positions(f.ids, found.ids)
    if kept.shape[axis] != full.shape[axis]:
        raise LayoutError("taken apart along an axis that shrank", full.all_ids())
    return np.arange(full.shape[axis])


def unbind(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    axis = _dim(a, node, 1) % len(x.shape)
    count = x.shape[axis]
    pieces = tuple(lb.squeeze(lb.take(x, axis, np.array([i])), axis) for i in range(count))
    a.freeze(node, "single channels are taken out", lb.lost(x, pieces))

    def recast(cut: Cut) -> Any:
        source = cut.value(node.args[0])
        _along(x, source, axis)
        return tuple(_select(source, axis, i, pieces[i]) for i in range(count))

    return pieces, recast


def _select(x: Labels, axis: int, index: int, like: Labels) -> Labels:
    """`x.select(axis, index)` in labels; `like` is the result before the cut."""
    taken = lb.take(x, axis, np.array([index]), like=lb.unsqueeze(like, axis))
    return lb.squeeze(taken, axis)


def getitem(a: Analysis, node: fx.Node) -> Result | None:
    """Indexing of a tuple of tensors, or of a tensor by ints, slices, None and Ellipsis."""
    x, index = a.value(node.args[0]), a.value(node.args[1])
    if not isinstance(x, Labels):
        return x[index], lambda cut: cut.value(node.args[0])[cut.value(node.args[1])]
    steps = _steps(index, len(x.shape))
    if steps is None:
        return None
    out = _apply(x, steps, None)
    a.freeze(node, "a single channel is taken out", lb.lost(x, [out]))

    def recast(cut: Cut) -> Any:
        source = cut.value(node.args[0])
        _rewrite_index(cut, node, x, source, steps)
        return _apply_kept(x, source, steps, out)

    return out, recast


def _steps(index: Any, rank: int) -> list[Any] | None:
    """One entry per source axis or inserted axis: an int, a slice or None; None for anything else."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not (i is None or i is Ellipsis or isinstance(i, int | slice)) or isinstance(i, bool) for i in items):
        return None
    used = sum(i is not None and i is not Ellipsis for i in items)
    fill = [slice(None)] * (rank - used)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        return [*items[:at], *fill, *items[at + 1 :]]
    return [*items, *fill]


def _apply(x: Labels, steps: Sequence[Any], like: Labels | None) -> Labels:
    axis = 0
    for step in steps:
        if step is None:
            x, axis = lb.unsqueeze(x, axis), axis + 1
        elif isinstance(step, int):
            x = lb.squeeze(lb.take(x, axis, np.array([step % x.shape[axis]]), like), axis)
        else:
            x, axis = lb.take(x, axis, np.arange(x.shape[axis])[step], like), axis + 1
    return x


def _apply_kept(full: Labels, kept: Labels, steps: Sequence[Any], out: Labels) -> Labels:
    """The same elements, by their old places; fields are those of `out`."""
    fields, shape, source = [], [], 0
    for step in steps:
        if step is None:
            shape.append(1)
            continue
        along = _along(full, kept, source)
        wanted = np.arange(full.shape[source])[step]
        if not isinstance(step, int):
            shape.append(int(np.isin(along, wanted).sum()))
        source += 1
    for f in out.fields:
        ids = kept.all_ids()
        present = np.isin(f.ids, ids)
        if len(f.axes) == 1:
            order = {int(v): i for i, v in enumerate(ids)}
            left = sorted(f.ids[present].tolist(), key=lambda v: order[v])
            fields.append(Field(f.axes, np.array(left, dtype=np.int64)))
        else:
            counts = [shape[ax] for ax in f.axes]
            if present.sum() != np.prod(counts):
                raise LayoutError("indexing leaves a ragged block of channels", f.ids)
            fields.append(Field(f.axes, f.ids[present].reshape(counts)))
    return Labels(tuple(shape), tuple(fields))


def _rewrite_index(cut: Cut, node: fx.Node, full: Labels, kept: Labels, steps: Sequence[Any]) -> None:
    """Slices of a channel axis get the bounds that enclose what is left of them."""
    new: list[Any] = []
    source, changed = 0, False
    for asked in steps:
        step = asked
        if step is None:
            new.append(None)
            continue
        if isinstance(step, slice) and full.at(source) is not None and kept.shape[source] != full.shape[source]:
            along = _along(full, kept, source)
            inside = np.flatnonzero(np.isin(along, np.arange(full.shape[source])[step]))
            if not len(inside) or (np.diff(inside) != 1).any() or step.step not in (None, 1):
                raise LayoutError("a slice of channels would be empty or torn", full.all_ids())
            step, changed = slice(int(inside[0]), int(inside[-1]) + 1), True
        new.append(step)
        source += 1
    if changed:
        raw = node.args[1]
        given = _steps_raw(raw, len(full.shape))
        cut.rewrite(
            node,
            node.target,
            (
                node.args[0],
                tuple(n if isinstance(n, slice) and n != o else g for n, o, g in zip(new, steps, given, strict=True)),
            ),
        )


def _steps_raw(index: Any, rank: int) -> list[Any]:
    """`_steps` on the graph's own arguments, which may hold nodes."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(i is not None and i is not Ellipsis for i in items)
    fill = [slice(None)] * (rank - used)
    if any(i is Ellipsis for i in items):
        at = next(n for n, i in enumerate(items) if i is Ellipsis)
        return [*items[:at], *fill, *items[at + 1 :]]
    return [*items, *fill]


def narrow(a: Analysis, node: fx.Node) -> Result | None:
    """`narrow` and `select` along positional axes."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels) or len(node.args) < 3:
        return None
    axis = int(a.value(node.args[1])) % len(x.shape)
    if x.at(axis) is not None:
        return None
    shape = tuple(node.meta["val"].shape)
    if len(shape) < len(x.shape):
        return lb.squeeze(x, axis), lambda cut: lb.squeeze(cut.value(node.args[0]), axis)

    def resized(x: Labels) -> Labels:
        return Labels((*x.shape[:axis], shape[axis], *x.shape[axis + 1 :]), x.fields)

    return resized(x), lambda cut: resized(cut.value(node.args[0]))


def cat(a: Analysis, node: fx.Node) -> Result | None:
    """Channels in a row along `dim`; channels on other axes are tied across the parts."""
    raw = node.args[0] if node.args else node.kwargs.get("tensors")
    parts = a.value(raw)
    if not isinstance(parts, list | tuple) or not all(isinstance(p, Labels) for p in parts):
        return None
    return join(a, node, list(raw), _dim(a, node, 1) % len(parts[0].shape))  # type: ignore[arg-type]


def join(a: Analysis, node: fx.Node, raw: Sequence[Any], axis: int) -> Result:
    from pipeline.surgery.rules.elementwise import merge

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

    def recast(cut: Cut) -> Labels:
        sources = [cut.value(r) for r in raw]
        made = again(_Stand(cut, {r: _without(s, axis) for r, s in zip(raw, sources, strict=True)}))  # type: ignore[arg-type]
        kept = made.fields
        if along is not None:
            ids = [along[i] if (f := s.at(axis)) is None else f.ids for i, s in enumerate(sources)]
            kept = (*kept, Field((axis,), np.concatenate(ids)))
        size = sum(s.shape[axis] for s in sources)
        return Labels((*made.shape[:axis], size, *made.shape[axis + 1 :]), kept)

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
    from pipeline.surgery.rules.elementwise import merge

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
    "unbind": unbind, "getitem": getitem, "narrow": narrow, "select": narrow,
    "cat": cat, "concat": cat, "concatenate": cat, "stack": stack,
}  # fmt: skip
