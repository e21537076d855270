"""Indexing by ints, slices, None, Ellipsis, lists and tensors of ints; narrow, select and index_select."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.surgery.channels import labels as lb
from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule, named_arguments
from pipeline.surgery.channels.labels import Field, Ids, Labels, LayoutError
from pipeline.surgery.rules.functions import select_channels
from pipeline.surgery.rules.moves.split_concat import along

Steps = list[Any]  # one entry per source axis or inserted axis: an int, a slice or None


def getitem(a: Analysis, node: fx.Node) -> Result | None:
    """Indexing of a tuple of tensors, or of a tensor."""
    x, index = a.value(node.args[0]), a.value(node.args[1])
    if not isinstance(x, Labels):
        return x[index], lambda cut: cut.value(node.args[0])[cut.value(node.args[1])]
    items = list(node.args[1]) if isinstance(node.args[1], tuple) else [node.args[1]]
    listed = [n for n, i in enumerate(items) if isinstance(i, list) or isinstance(a.value(i), Labels)]
    if listed:
        full = all(i == slice(None) for n, i in enumerate(items) if n < listed[0])
        return gathered(a, node, x, listed[0], items[-1]) if full and listed[0] == len(items) - 1 else None
    steps, raw = _steps(index, len(x.shape)), _steps(node.args[1], len(x.shape), checked=False)
    return None if steps is None or raw is None else indexed(a, node, x, steps, raw)


def narrow(a: Analysis, node: fx.Node) -> Result | None:
    """narrow(x, dim, start, length) and select(x, dim, index)."""
    select = getattr(node.target, "__name__", node.target) == "select"
    names = ("input", "dim", "index") if select else ("input", "dim", "start", "length")
    arguments = a.call(node, *names)
    x = arguments.get("input")
    if not isinstance(x, Labels) or not all(isinstance(arguments.get(n), int) for n in names[1:]):
        return None
    axis = arguments["dim"] % len(x.shape)
    start = arguments["index"] if select else arguments["start"] % max(x.shape[axis], 1)
    steps: Steps = [slice(None)] * len(x.shape)
    steps[axis] = start if select else slice(start, start + arguments["length"])
    return indexed(a, node, x, steps, steps)


def index_select(a: Analysis, node: fx.Node) -> Result | None:
    arguments = named_arguments(node, "input", "dim", "index")
    x, axis = a.value(arguments.get("input")), a.value(arguments.get("dim"))
    if not isinstance(x, Labels) or not isinstance(axis, int):
        return None
    return gathered(a, node, x, axis % len(x.shape), arguments.get("index"))


def gathered(a: Analysis, node: fx.Node, x: Labels, axis: int, index: Any) -> Result | None:
    """Entries `index` of an axis: a list of ints, or a tensor of ints whose own axes replace the axis."""
    numbers, rank = _constant(a, index), 1
    if isinstance(index, fx.Node):
        val = index.meta["val"]
        if not isinstance(val, Tensor) or val.is_floating_point() or val.dtype == torch.bool:
            return None
        rank = val.dim()
    f = x.at(axis)
    if f is not None and f.axes == (axis,) and numbers is not None:
        return _reordered(node, x, axis, f.ids, numbers)
    if f is not None:
        a.freeze(node, "indexed by numbers that are not known", f.ids)
    full = tuple(node.meta["val"].shape)

    def without(x: Labels) -> Labels:
        fields = [
            Field(tuple(ax + (rank - 1) * (ax > axis) for ax in g.axes), g.ids) for g in x.fields if axis not in g.axes
        ]
        sizes = [full[ax + (rank - 1) * (ax > axis)] if x.at(ax) is None else x.shape[ax] for ax in range(len(x.shape))]
        return Labels((*sizes[:axis], *full[axis : axis + rank], *sizes[axis + 1 :]), tuple(fields))

    return without(x), lambda cut: without(cut.value(node.args[0]))


def _reordered(node: fx.Node, x: Labels, axis: int, ids: Ids, index: Ids) -> Result:
    """Channels taken by known numbers."""
    others = tuple(g for g in x.fields if axis not in g.axes)
    out = ids[index]

    def recast(cut: CutView) -> Labels:
        source = cut.value(node.args[0])
        here = source.at(axis)
        if here is None or not cut.keep[out].any():
            raise LayoutError("no channel is left that is indexed", out[:1])
        place = np.full(len(ids), -1)
        arrived = lb.positions(ids, here.ids)
        place[arrived] = np.arange(len(arrived))
        chosen = np.flatnonzero(cut.keep[out])
        if len(arrived) < len(ids):
            cut.rewrite(node, select_channels, (node.args[0], axis, place[index[chosen]].tolist()))
        shape = (*source.shape[:axis], len(chosen), *source.shape[axis + 1 :])
        return Labels(shape, (*(g for g in source.fields if axis not in g.axes), Field((axis,), out[chosen])))

    shape = (*x.shape[:axis], len(index), *x.shape[axis + 1 :])
    return Labels(shape, (*others, Field((axis,), out))), recast


def indexed(a: Analysis, node: fx.Node, x: Labels, steps: Steps, raw: Steps) -> Result:
    """`x[steps]`; `raw` are the same as the graph has them, where computed bounds are nodes."""
    out = _apply(x, steps)
    taken = Labels(x.shape, tuple(Field(f.axes, _at(f, x.shape, steps)) for f in x.fields))
    a.freeze(node, "a single channel is taken out", lb.lost(taken, [out]))

    def recast(cut: CutView) -> Labels:
        source = cut.value(node.args[0])
        places = _places(x, source, steps, out)
        _rewrite(cut, node, x, source, steps, raw, places)
        return _taken(source, steps, places, out)

    return out, recast


def _steps(index: Any, rank: int, checked: bool = True) -> Steps | None:
    """Steps of an index, filled up to the rank; None for what is no int, slice, None or Ellipsis."""
    items = list(index) if isinstance(index, tuple | list) else [index]
    plain = all(i is None or i is Ellipsis or (isinstance(i, int | slice) and not isinstance(i, bool)) for i in items)
    if checked and not plain:
        return None
    used = sum(i is not None and i is not Ellipsis for i in items)
    fill = [slice(None)] * (rank - used)
    at = next((n for n, i in enumerate(items) if i is Ellipsis), None)
    return [*items, *fill] if at is None else [*items[:at], *fill, *items[at + 1 :]]


def _apply(x: Labels, steps: Steps) -> Labels:
    axis = 0
    for step in steps:
        if step is None:
            x, axis = lb.unsqueeze(x, axis), axis + 1
        elif isinstance(step, int):
            x = lb.squeeze(lb.take(x, axis, np.array([step % x.shape[axis]])), axis)
        else:
            x, axis = lb.take(x, axis, np.arange(x.shape[axis])[step]), axis + 1
    return x


def _at(f: Field, shape: tuple[int, ...], steps: Steps) -> Ids:
    """The ids of a field that the steps take."""
    ids = f.ids
    for axis, step in enumerate(s for s in steps if s is not None):
        if axis in f.axes:
            ids = ids.take(np.atleast_1d(np.arange(shape[axis])[step]), f.axes.index(axis))
    return ids


def _places(full: Labels, remaining: Labels, steps: Steps, out: Labels) -> list[Ids]:
    """Per axis of the source, which of its entries the index takes once channels are gone."""
    places = []
    for axis, step in enumerate(s for s in steps if s is not None):
        if step == slice(None) or full.at(axis) is None:
            places.append(np.arange(remaining.shape[axis])[[step] if isinstance(step, int) else step])
            continue
        chosen = np.arange(full.shape[axis])[step]
        places.append(np.flatnonzero(np.isin(along(full, remaining, axis), chosen)))
        if not len(places[-1]):
            taken = full.at(axis)
            assert taken is not None
            raise LayoutError(
                "a slice of channels would be empty", taken.ids.take([np.min(chosen)], taken.axes.index(axis))
            )
    return places


def _taken(remaining: Labels, steps: Steps, places: list[Ids], out: Labels) -> Labels:
    """The labels at `places`; the fields and their axes are those of `out`, the labels before the cut."""
    shape: list[int] = []
    becomes: list[int | None] = []  # source axis -> output axis
    for step in steps:
        if step is not None:
            becomes.append(None if isinstance(step, int) else len(shape))
        if not isinstance(step, int):
            shape.append(1 if step is None else len(places[len(becomes) - 1]))
    fields = []
    for f in remaining.fields:
        ids = f.ids
        for i, axis in enumerate(f.axes):
            ids = ids.take(places[axis], i)
        like = next((g for g in out.fields if ids.size and bool((g.ids == ids.flat[0]).any())), None)
        if like is not None:
            fields.append(Field(like.axes, ids[tuple(slice(None) if becomes[ax] in like.axes else 0 for ax in f.axes)]))
    return Labels(tuple(shape), tuple(fields))


def _rewrite(
    cut: CutView, node: fx.Node, full: Labels, remaining: Labels, steps: Steps, raw: Steps, places: list[Ids]
) -> None:
    """Slices of a channel axis get the bounds of what is left of them, or a selection where that is no slice."""
    new, axis, changed = [_number(cut, r) for r in raw], 0, False
    source: Any = node.args[0]
    for n, step in enumerate(steps):
        if step is None:
            continue
        if isinstance(step, slice) and step != slice(None) and remaining.shape[axis] != full.shape[axis]:
            at, changed = places[axis], True
            new[n] = slice(int(at[0]), int(at[-1]) + 1)
            if (np.diff(at) != 1).any():
                source, new[n] = cut.call(select_channels, (source, axis, at.tolist())), slice(None)
        axis += 1
    if changed:
        cut.rewrite(node, operator.getitem, (source, tuple(new)))
    else:
        cut.freeze_numbers(node)


def _number(cut: CutView, raw: Any) -> Any:
    """A bound as it was, where it was computed from a width that has changed."""
    if isinstance(raw, slice):
        return slice(_number(cut, raw.start), _number(cut, raw.stop), _number(cut, raw.step))
    return cut.analysis.value(raw) if isinstance(raw, fx.Node) and cut.value(raw) != cut.analysis.value(raw) else raw


def _constant(a: Analysis, index: Any) -> Ids | None:
    """The values of an index that is a buffer of the network or a list of ints; None where it is computed."""
    if isinstance(index, list):
        return np.array(index, dtype=np.int64) if all(isinstance(i, int) for i in index) else None
    if isinstance(index, fx.Node) and index.op == "get_attr":
        held = a.tensor(str(index.target))
        if isinstance(held, Tensor) and not held.is_floating_point() and held.dim() == 1:
            return held.cpu().numpy().astype(np.int64)
    return None


FUNCTIONS: dict[str, Rule] = {
    "getitem": getitem, "narrow": narrow, "select": narrow, "index_select": index_select,
}  # fmt: skip
