"""Additions of an untied residual stream: each operand and the sum keep channels of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, positions
from pipeline.surgery.rules.elementwise import FUNCTIONS as ELEMENTWISE
from pipeline.surgery.streams import select_channels

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


def add(a: Analysis, node: fx.Node) -> Result | None:
    """x + y: tied element by element, or, in an untied stream, with selections where the kept channels differ."""
    operands = [a.value(x) for x in node.args[:2]]
    axis = _stream_axis(operands) if a.residual == "untied" and len(node.args) == 2 and not node.kwargs else None
    return ELEMENTWISE["add"](a, node) if axis is None else _untied(a, node, operands, axis)


def _stream_axis(operands: list[Any]) -> int | None:
    """The one axis along which the channels of both operands lie, if they are activations of one shape."""
    if len(operands) != 2 or not all(isinstance(x, Labels) and x.parameter is None for x in operands):
        return None
    x, y = operands
    axes = [f.axes for f in (*x.fields, *y.fields)]
    one = len(x.fields) == len(y.fields) == 1 and axes[0] == axes[1] and len(axes[0]) == 1
    return axes[0][0] if one and x.shape == y.shape else None


def _untied(a: Analysis, node: fx.Node, operands: list[Labels], axis: int) -> Result:
    ids = [x.fields[0].ids for x in operands]
    known = [a.ledger.constant(i) for i in ids]
    measured = [a.ledger.measured(i) for i in ids]
    out = a.ledger.fresh(known[0] + known[1], measured[0] | measured[1])
    for i, k in zip(ids, known, strict=True):
        a.ledger.read(i, np.ones(len(i), bool))
        a.ledger.depend(i[k != 0], out[k != 0])
    a.streams[node.name] = out
    shape = tuple(node.meta["val"].shape)

    def recast(cut: Cut) -> Labels:
        wanted = cut.kept(out)
        parts = [_selected(cut, arg, i, axis, wanted) for arg, i in zip(node.args, ids, strict=True)]
        if any(p is not arg for p, arg in zip(parts, node.args, strict=True)):
            cut.rewrite(node, torch.add, tuple(parts))
        return Labels((*shape[:axis], len(wanted), *shape[axis + 1 :]), (Field((axis,), out[wanted]),))

    return Labels(shape, (Field((axis,), out),)), recast


def _selected(cut: Cut, arg: Any, ids: Ids, axis: int, wanted: Ids) -> Any:
    """The operand itself where it keeps just the channels wanted, else a call that selects them."""
    arrived = positions(ids, cut.value(arg).at(axis).ids)
    place = np.full(len(ids), -1)
    place[arrived] = np.arange(len(arrived))
    index = place[wanted]
    if np.array_equal(index, np.arange(len(arrived))):
        return arg
    return cut.call(select_channels, (arg, axis, index.tolist()))


def selected(a: Analysis, node: fx.Node) -> Result | None:
    """A selection in a network that was cut before: its channels go with those they were selected from."""
    x, axis, index = a.value(node.args)
    if not isinstance(x, Labels) or [f.axes for f in x.fields] != [(axis,)]:
        return None
    ids = x.fields[0].ids
    made = a.ledger.fresh(np.zeros(len(index)))
    out = np.where(np.array(index) >= 0, ids[np.array(index)], made)
    shape = tuple(node.meta["val"].shape)

    def recast(cut: Cut) -> Labels:
        wanted = cut.kept(out)
        arrived = positions(ids, cut.value(node.args[0]).at(axis).ids)
        place = np.full(len(ids), -1)
        place[arrived] = np.arange(len(arrived))
        old = np.array(index)[wanted]
        new = np.where(old >= 0, place[old], -1)
        cut.rewrite(node, select_channels, (node.args[0], axis, new.tolist()))
        return Labels((*shape[:axis], len(wanted), *shape[axis + 1 :]), (Field((axis,), out[wanted]),))

    return Labels(shape, (Field((axis,), out),)), recast


FUNCTIONS: dict[str, Rule] = {"add": add, "iadd": add, "select_channels": selected}
