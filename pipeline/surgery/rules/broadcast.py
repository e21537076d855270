"""Elementwise results in labels: operands aligned from the right, their channels tied, their constants combined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx

from pipeline.surgery.channels.analysis import Analysis, CutView, Result
from pipeline.surgery.channels.labels import Field, Ids, Labels, LayoutError, rising
from pipeline.surgery.channels.ledger import Floats

Evaluate = Callable[[list[Any]], Any]  # constants of the operands, float64 tensors or numbers -> constants


@dataclass(frozen=True)
class Joint:
    """One output field: its axes, the operands it comes from, and the table (operand ids) -> output id."""

    axes: tuple[int, ...]
    operands: tuple[int, ...]
    keys: Ids  # (operands, entries), columns in lexicographic order
    ids: Ids  # (entries,)


def merge(a: Analysis, node: fx.Node, args: Sequence[Any], shape: tuple[int, ...], evaluate: Evaluate) -> Result:
    """Labels of an elementwise result of `shape`; `args` are the node's operands, broadcast from the right."""
    operands = [a.value(x) for x in args]
    joints = []
    for axes in _axis_sets(operands, len(shape)):
        parts = _parts(a, node, operands, axes, shape)
        if parts is not None:
            joints.append(_join(a, operands, axes, parts, evaluate))

    def recast(cut: CutView) -> Labels:
        cut.freeze_numbers(node)
        return recast_merge(cut, [cut.value(x) for x in args], [j for _, j in joints], shape)

    return Labels(shape, tuple(f for f, _ in joints)), recast


def recast_merge(cut: CutView, operands: Sequence[Any], joints: Sequence[Joint], full: tuple[int, ...]) -> Labels:
    """The same merge over what is kept; LayoutError where the operands' orders no longer agree."""
    rank, labelled = len(full), [x for x in operands if isinstance(x, Labels)]
    shape = [max((_size(x, ax, rank) for x in labelled), default=n) for ax, n in enumerate(full)]
    fields = []
    for joint in joints:
        pairs = [(operands[i], _field_on(operands[i], joint.axes, rank)) for i in joint.operands]
        parts = [_spread(x, f, joint.axes, rank) for x, f in pairs]
        try:
            ids = np.broadcast_arrays(*parts)
        except ValueError:
            every = np.concatenate([p.ravel() for p in parts])
            raise LayoutError("operands keep different numbers of channels", every) from None
        table, key = _keys(joint.keys, ids, cut.analysis.ledger.size)
        at = np.minimum(np.searchsorted(table, key), len(table) - 1)
        if not np.array_equal(table[at], key):
            raise LayoutError("operands keep channels in different orders", np.concatenate([i.ravel() for i in ids]))
        fields.append(Field(joint.axes, joint.ids[at]))
        for ax, n in zip(joint.axes, key.shape, strict=True):
            shape[ax] = n
    return Labels(tuple(shape), tuple(fields))


def _axis_sets(operands: Sequence[Any], rank: int) -> list[tuple[int, ...]]:
    sets: list[set[int]] = []
    for x in operands:
        if isinstance(x, Labels):
            for f in x.fields:
                new = {ax + rank - len(x.shape) for ax in f.axes}
                touching = [s for s in sets if s & new]
                sets = [s for s in sets if not s & new] + [new.union(*touching)]
    return [tuple(sorted(s)) for s in sets]


def _size(x: Labels, axis: int, rank: int) -> int:
    at = axis - (rank - len(x.shape))
    return x.shape[at] if at >= 0 else 1


def _field_on(x: Labels, axes: tuple[int, ...], rank: int) -> Field:
    off = rank - len(x.shape)
    return next(f for f in x.fields if {ax + off for ax in f.axes} & set(axes))


def _spread(x: Labels, f: Field, axes: tuple[int, ...], rank: int) -> Ids:
    """The field's ids with one dimension per axis of `axes`, of size 1 where they do not vary."""
    off = rank - len(x.shape)
    own = {ax + off: n for ax, n in zip(f.axes, f.ids.shape, strict=True)}
    return f.ids.reshape([own.get(ax, 1) for ax in axes])


def _parts(
    a: Analysis, node: fx.Node, operands: Sequence[Any], axes: tuple[int, ...], shape: tuple[int, ...]
) -> list[tuple[int, Ids]] | None:
    """(operand, ids over `axes`) of each operand with channels there; None and frozen where one cannot follow."""
    rank, parts, problem = len(shape), [], None
    for i, x in enumerate(operands):
        if not isinstance(x, Labels):
            continue
        off = rank - len(x.shape)
        fields = [f for f in x.fields if {ax + off for ax in f.axes} & set(axes)]
        if len(fields) > 1:
            problem = "two independent channel axes are combined"
        elif fields:
            ids = _spread(x, fields[0], axes, rank)
            parts.append((i, np.broadcast_to(ids, [shape[ax] for ax in axes])))
        elif any(_size(x, ax, rank) > 1 for ax in axes):
            problem = "combined with a tensor that cannot be cut"
    if problem is None:
        return parts
    for x in operands:
        if isinstance(x, Labels):
            for f in x.fields:
                if {ax + rank - len(x.shape) for ax in f.axes} & set(axes):
                    a.freeze(node, problem, f.ids)
    return None


def _keys(table: Sequence[Ids] | Ids, ids: Sequence[Ids], base: int) -> tuple[Ids, Ids]:
    """One number per tuple of ids, all below `base`: of the columns of `table`, increasing in lexicographic order, and
    by the same count of `ids`; -1 for a tuple that cannot be in the table."""
    keys, asked = np.asarray(table[0], np.int64), np.asarray(ids[0], np.int64)
    for i, (row, more) in enumerate(zip(table[1:], ids[1:], strict=True)):
        if i:  # by rank, for the product of many bases would not fit 64 bits
            ranks, keys = np.unique(keys, return_inverse=True)
            at = np.minimum(np.searchsorted(ranks, asked), len(ranks) - 1)
            asked = np.where(ranks[at] == asked, at, -1)
        keys, asked = keys.reshape(row.shape) * base + row, np.where(asked < 0, -1, asked * base + more)
    return keys, asked


def _join(
    a: Analysis, operands: Sequence[Any], axes: tuple[int, ...], parts: list[tuple[int, Ids]], evaluate: Evaluate
) -> tuple[Field, Joint]:
    stacked = np.stack([ids.ravel() for _, ids in parts])
    unique, inverse = stacked, np.arange(stacked.shape[1])
    if not rising(stacked[0]):
        key = _keys(stacked, stacked, a.ledger.size)[0]  # type: ignore[arg-type]
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        unique = stacked[:, first]
    constants, measured = _constants(a, operands, [i for i, _ in parts], unique, evaluate)
    out = a.ledger.fresh(constants, measured, like=unique[0])
    for row in unique[1:]:
        a.ledger.tie(row, out)
    joint = Joint(axes, tuple(i for i, _ in parts), unique, out)
    return Field(axes, out[inverse].reshape(parts[0][1].shape)), joint


def _constants(
    a: Analysis, operands: Sequence[Any], where: list[int], ids: Ids, evaluate: Evaluate
) -> tuple[Floats, Any]:
    inputs = a.ledger.constant(ids)
    count = ids.shape[1]
    if np.isnan(inputs).all():
        return np.full(count, np.nan), False
    values: list[Any] = []
    for i, x in enumerate(operands):
        if i in where:
            values.append(torch.from_numpy(inputs[where.index(i)]))
        else:
            values.append(torch.full((count,), _single(a, x), dtype=torch.float64) if isinstance(x, Labels) else x)
    measured = (a.ledger.measured(ids) & ~np.isnan(inputs)).any(0)
    return np.asarray(evaluate(values), dtype=np.float64), measured


def _single(a: Analysis, x: Labels) -> float:
    """The value of a parameter of one element, else NaN."""
    one = x.parameter is not None and set(x.shape) <= {1}
    return float(a.tensor(x.parameter).detach()) if x.parameter is not None and one else torch.nan


def strict(function: Callable[..., Any]) -> Evaluate:
    """Constant where all operands are."""

    def evaluate(values: list[Any]) -> Any:
        unknown = reduce(torch.logical_or, [v.isnan() for v in values if isinstance(v, torch.Tensor)])
        return torch.where(
            unknown, torch.nan, function(*[v.clone() if isinstance(v, torch.Tensor) else v for v in values])
        )

    return evaluate


def product(values: list[Any]) -> Any:
    """A zero factor makes a zero product whatever the other factor is (all values are finite)."""
    x, y = (v if isinstance(v, torch.Tensor) else torch.tensor(float(v), dtype=torch.float64) for v in values)
    return torch.where((x == 0) | (y == 0), 0.0, x * y)


def quotient(values: list[Any]) -> Any:
    x, y = (v if isinstance(v, torch.Tensor) else torch.tensor(float(v), dtype=torch.float64) for v in values)
    return torch.where(x == 0, 0.0, x / y)
