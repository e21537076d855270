"""The book of all channels: which live or go together, which are constant, which are read, and which are frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.surgery.channels.labels import Ids

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
VARYING = float("nan")


def _grown(values: NDArray[Any], size: int) -> Any:
    """With zeros behind, in memory that is not touched before it is used."""
    more = np.zeros(size, values.dtype)
    more[: len(values)] = values
    return more


def finite(constants: Floats) -> Floats:
    """0 where there is no number."""
    return np.where(np.isfinite(constants), constants, 0.0)


@dataclass(frozen=True)
class Freeze:
    """Channels that stay because of an operation the surgery cannot cut through."""

    where: str
    reason: str
    ids: Ids


@dataclass(frozen=True)
class Read:
    """Channels that an operation cannot do without; `reason` says why constants among them cannot go."""

    reason: str
    ids: Ids


@dataclass(frozen=True)
class Rows:
    """Matrices (rows, columns) of ids: in each, every row keeps the same number of channels, at least one.

    `droppable`: the rows at one place may also go from all of them together.
    """

    parts: tuple[Ids, ...]
    droppable: bool = False


@dataclass
class Ledger:
    """Ids are dense integers. `constant[id]` is the value every element of the channel has for every input, or NaN;
    `measured[id]` says the constant rests on a census, not on the weights alone; `_root[id]` is the first in the row
    of ids that it was made like."""

    size: int = 0
    _constant: Floats = field(default_factory=lambda: np.full(1024, np.nan))
    _measured: Flags = field(default_factory=lambda: np.zeros(1024, bool))
    _root: Ids = field(default_factory=lambda: np.zeros(1024, np.int64))
    _ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    needed: list[Read] = field(default_factory=list)
    _depends: list[tuple[Ids, Ids]] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    padded: list[Ids] = field(default_factory=list)
    """Of each layer with zero padding the constants other than 0 that enter it."""
    freezes: list[Freeze] = field(default_factory=list)
    _planned: list[Ids] = field(default_factory=list)
    _whole: list[Ids] = field(default_factory=list)

    def fresh(self, constants: Floats, measured: Flags | bool = False, like: Ids | None = None) -> Ids:
        """New ids of the shape of `constants`; each is kept or removed together with that of `like` at its place."""
        values, first = constants.ravel(), self.size
        ids = np.arange(first, first + len(values))
        self.size += len(values)
        if self.size > len(self._constant):
            size = max(self.size, 4 * len(self._constant))
            self._constant, self._root = _grown(self._constant, size), _grown(self._root, size)
            self._measured = _grown(self._measured, size)
        self._constant[first : self.size] = values
        self._root[first : self.size] = ids if like is None else self._root[like.ravel()]
        if measured is not False:
            self._measured[first : self.size] = np.isfinite(values) & np.ravel(measured)
        return ids.reshape(constants.shape)

    def varying(self, shape: tuple[int, ...]) -> Ids:
        return self.fresh(np.full(shape, VARYING))

    def constant(self, ids: Ids) -> Floats:
        return self._constant[ids]

    def origin(self) -> Ids:
        """Of each id the first in the row of ids that it was made like."""
        return self._root[: self.size]

    def measured(self, ids: Ids) -> Flags:
        return self._measured[ids]

    def hold(self, ids: Ids, value: float = 0.0) -> None:
        """Take the channels to be `value` because they were measured so; a constant proven already stays as proven."""
        ids = ids[np.isnan(self._constant[ids])]
        self._constant[ids], self._measured[ids] = value, True

    def prove(self, ids: Ids, values: Floats) -> None:
        """The channels are these constants, which no rule could tell."""
        self._constant[ids] = values

    def plan(self, ids: Ids) -> None:
        """A plan removes these channels, whatever the weights at hand say."""
        self._planned.append(self._root[ids])

    def zero(self, ids: Ids) -> Flags:
        """Whether a channel is zero, or removed by a plan that was made when it was."""
        flags: Flags = self._constant[ids] == 0
        return flags | np.isin(self._root[ids], np.concatenate(self._planned)) if self._planned else flags

    def tie(self, a: Ids, b: Ids) -> None:
        """These channels are kept or removed together, element by element (shapes broadcast)."""
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self._ties.append((a.ravel(), b.ravel()))

    def read(self, ids: Ids, removable: Flags, reason: str = "a constant that no bias takes up") -> None:
        """An operation mixes these channels into others; where `removable`, it can do without them."""
        self.needed.append(Read(reason, ids[~removable].ravel()))

    def tie_lines(self, lines: Ids) -> None:
        """What lies along the last axis goes as a whole."""
        self.tie(lines[..., :1], lines)
        if lines.shape[-1] > 1:
            self._whole.append(self._root[lines].ravel())

    def goes_whole(self, lines: Ids) -> bool:
        """Whether these channels were entered by `tie_lines`."""
        return bool(self._whole) and bool(np.isin(self._root[lines], np.concatenate(self._whole)).all())

    def depend(self, ids: Ids, on: Ids) -> None:
        """Each of `ids` must stay where the channel of `on` at its place stays."""
        self._depends.append((ids, on))

    def freeze(self, where: str, reason: str, ids: Ids) -> None:
        if ids.size:
            self.freezes.append(Freeze(where, reason, ids.ravel()))

    def equal_rows(self, *parts: Ids, droppable: bool = False) -> None:
        """Enter `Rows`."""
        if parts:
            self.rows.append(Rows(parts, droppable))

    def classes(self) -> Ids:
        """The class of each id: ids of one class are kept or removed together."""
        root = self._root[: self.size]
        first = root == np.arange(self.size)
        place = (np.cumsum(first) - 1)[root]  # of each id its root among the roots
        count = int(first.sum())
        none: Ids = np.empty(0, np.int64)
        a = place[np.concatenate([none, *(t[0] for t in self._ties)])]
        b = place[np.concatenate([none, *(t[1] for t in self._ties)])]
        graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(count, count))
        components: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
        return np.asarray(components[place])

    def removable(self, classes: Ids) -> Flags:
        """Per class: every reader can do without it, if there is any."""
        count = int(classes.max()) + 1 if len(classes) else 0
        staying = np.zeros(count, bool)
        for read in self.needed:
            staying[classes[read.ids]] = True
        for freeze in self.freezes:
            staying[classes[freeze.ids]] = True
        self.follow(classes, staying)
        return ~staying

    def follow(self, classes: Ids, keep: Flags) -> None:
        """Keep, in place, every class that a kept one depends on."""
        while self._depends:
            before = int(keep.sum())
            for ids, on in reversed(self._depends):
                keep[classes[ids[keep[classes[on]]]]] = True
            if int(keep.sum()) == before:
                return
