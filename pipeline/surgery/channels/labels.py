"""Which channel each element of a tensor belongs to, and how data movement carries that along.

An *id* names one channel of one tensor value. A `Field` says along which axes the ids vary; every other axis is
positional: all its elements belong to the same channel, and its size never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class LayoutError(Exception):
    """The channels that stay cannot be laid out as the operation needs them.

    `ids` are the channels concerned; `at_node` all that meet at the operation, for the case that those of `ids` stay.
    """

    def __init__(self, reason: str, ids: Ids) -> None:
        super().__init__(reason)
        self.reason, self.ids = reason, ids.ravel()
        self.at_node: Ids = self.ids


@dataclass(frozen=True)
class Field:
    """Ids of shape `[size of each of axes]`, axes increasing."""

    axes: tuple[int, ...]
    ids: Ids


@dataclass(frozen=True)
class Labels:
    """A tensor's shape, its fields on disjoint axes, and the parameter it is, if it is one."""

    shape: tuple[int, ...]
    fields: tuple[Field, ...] = ()
    parameter: str | None = None

    def at(self, axis: int) -> Field | None:
        """The field that varies along `axis`."""
        return next((f for f in self.fields if axis in f.axes), None)

    def all_ids(self) -> Ids:
        return np.concatenate([f.ids.ravel() for f in self.fields]) if self.fields else np.empty(0, np.int64)


def compress(axes: Sequence[int], ids: Ids, like: Labels | None = None) -> Field | None:
    """Drop the axes along which the ids do not vary; None when nothing varies.

    With `like`, the labels of the same tensor before cutting, the axes are those of its field with these ids: one
    channel left over does not vary, yet it is a channel.
    """
    if like is None:
        keep = [i for i in range(ids.ndim) if ids.shape[i] > 1 and bool((ids != ids.take([0], i)).any())]
    else:
        field = next((f for f in like.fields if ids.size and (f.ids == ids.flat[0]).any()), None)
        keep = [] if field is None else [i for i in range(ids.ndim) if axes[i] in field.axes]
    if not keep:
        return None
    ids = ids[tuple(slice(None) if i in keep else 0 for i in range(ids.ndim))]
    return Field(tuple(axes[i] for i in keep), ids)


def permute(x: Labels, order: Sequence[int]) -> Labels:
    """`order[i]` is the input axis that becomes output axis i."""
    where = {a: i for i, a in enumerate(order)}
    fields = []
    for f in x.fields:
        axes = [where[a] for a in f.axes]
        sort = np.argsort(axes)
        fields.append(Field(tuple(axes[i] for i in sort), f.ids.transpose(*sort)))
    return Labels(tuple(x.shape[a] for a in order), tuple(fields))


def unsqueeze(x: Labels, axis: int) -> Labels:
    fields = tuple(Field(tuple(a + (a >= axis) for a in f.axes), f.ids) for f in x.fields)
    return Labels((*x.shape[:axis], 1, *x.shape[axis:]), fields)


def squeeze(x: Labels, axis: int) -> Labels:
    """Remove an axis along which no ids vary."""
    fields = tuple(Field(tuple(a - (a > axis) for a in f.axes), f.ids) for f in x.fields)
    return Labels((*x.shape[:axis], *x.shape[axis + 1 :]), fields)


def take(x: Labels, axis: int, index: Ids, like: Labels | None = None) -> Labels:
    """The elements `index` along `axis`; ids that no longer vary leave their field."""
    shape = (*x.shape[:axis], len(index), *x.shape[axis + 1 :])
    fields = []
    for f in x.fields:
        rest = compress(f.axes, f.ids.take(index, f.axes.index(axis)), like) if axis in f.axes else f
        if rest is not None:
            fields.append(rest)
    return Labels(shape, tuple(fields))


def lost(before: Labels, after: Sequence[Labels]) -> Ids:
    """Ids of `before` whose field vanished in `after` (a single channel was selected): nothing can be cut there."""
    every = np.sort(before.all_ids())
    rest = np.sort(np.concatenate([a.all_ids() for a in after])) if after else every[:0]
    return every[:0] if np.array_equal(every, rest) else np.setdiff1d(every, rest)


def rising(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def distinct(ids: Ids) -> tuple[Ids, Ids]:
    """The different ids in order, and where each of `ids` stands among them, both 1-d; quick where all are in order."""
    flat = ids.ravel()
    if rising(flat):
        return flat, np.arange(len(flat))
    entry, at = np.unique(flat, return_inverse=True)
    return entry, at


Block = tuple[list[int], list[int]]


def blocks(source: Sequence[int], target: Sequence[int]) -> list[Block]:
    """Split both shapes into runs of axes of equal products, as short as possible."""
    out: list[Block] = []
    i = j = 0
    while i < len(source) or j < len(target):
        ins, outs = ([i] if i < len(source) else []), ([j] if j < len(target) else [])
        i, j = i + len(ins), j + len(outs)
        p, q = prod(source[a] for a in ins), prod(target[a] for a in outs)
        while p != q:
            if p < q:
                ins.append(i)
                p, i = p * source[i], i + 1
            else:
                outs.append(j)
                q, j = q * target[j], j + 1
        out.append((ins, outs))
    return out


def reshape(
    x: Labels, target: tuple[int, ...], like: Labels | None = None, parts: Sequence[Block] | None = None
) -> Labels:
    """Row-major reshape; a field follows its elements. `parts`: the blocks before the cut, when no size was 1 yet."""
    fields = []
    for f in x.fields:
        touched = [b for b in parts or blocks(x.shape, target) if set(b[0]) & set(f.axes)]
        ins = [a for b in touched for a in b[0]]
        outs = [a for b in touched for a in b[1]]
        ids = _spread(f, ins, x.shape).reshape([target[a] for a in outs])
        remaining = compress(outs, ids, like)
        if remaining is not None:
            fields.append(remaining)
    return Labels(target, tuple(fields))


def _spread(f: Field, axes: Sequence[int], shape: Sequence[int]) -> Ids:
    """The field's ids over all of `axes`, repeated along those on which they do not vary."""
    expanded = f.ids.reshape([shape[a] if a in f.axes else 1 for a in axes])
    return np.broadcast_to(expanded, [shape[a] for a in axes])


def concatenate(parts: Sequence[Labels], axis: int) -> Labels | None:
    """Join along `axis` when the ids vary, if at all, along `axis` alone in every part; None otherwise."""
    pieces = []
    for p in parts:
        f = p.at(axis)
        if f is None or f.axes != (axis,) or len(p.fields) > 1:
            return None
        pieces.append(f.ids)
    ids = np.concatenate(pieces)
    return replace(parts[0], shape=_joined_shape(parts, axis), fields=(Field((axis,), ids),), parameter=None)


def _joined_shape(parts: Sequence[Labels], axis: int) -> tuple[int, ...]:
    first = parts[0].shape
    return (*first[:axis], sum(p.shape[axis] for p in parts), *first[axis + 1 :])


def positions(full: Ids, remaining: Ids) -> Ids:
    """Where each entry of `kept` stands in `full` (both 1-d); repeated ids are matched in order of occurrence."""
    if len(full) and rising(full):
        inside = len(remaining) and full[0] <= remaining[0] and remaining[-1] <= full[-1] and rising(remaining)
        at: Ids = remaining - full[0]
        if inside and full[-1] - full[0] == len(full) - 1:  # the ids of a layer follow each other
            return at
        at = np.searchsorted(full, remaining)
        at = np.minimum(at, len(full) - 1)
        if not np.array_equal(full[at], remaining) or len(distinct(at)[0]) != len(at):
            raise LayoutError("channels arrive that the layer does not know", remaining)
        return at
    return _ranked(full, remaining)


def _ranked(full: Ids, remaining: Ids) -> Ids:
    def keys(ids: Ids) -> Ids:
        order = np.argsort(ids, kind="stable")
        starts = np.r_[True, ids[order][1:] != ids[order][:-1]]
        rank = np.arange(len(ids)) - np.maximum.accumulate(np.where(starts, np.arange(len(ids)), 0))
        out = np.empty(len(ids), np.int64)
        out[order] = rank
        return ids * (max(len(full), len(remaining)) + 1) + out

    a, b = keys(full), keys(remaining)
    order = np.argsort(a)
    at = np.minimum(np.searchsorted(a[order], b), len(a) - 1)
    if not np.array_equal(a[order][at], b):
        raise LayoutError("channels arrive that the layer does not know", remaining)
    return order[at]
