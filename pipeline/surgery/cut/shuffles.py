"""Shuffles before grouped convolutions: how many channels of each row and group stay, so that each finds its place.

A shuffle lays channels out in rows, (rows, size), and reads them column by column; a grouped convolution behind it
reads that in groups of equal size. With n channels left of every row, the channel at place q of the shuffled order is
of row q % rows and group q // (rows * n / groups). So n says how many channels stay of each row in each group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.channels.ledger import Flags, Rows

Counts = Ids  # (rows, groups)


@dataclass(frozen=True)
class Shuffle:
    """`classes` (rows, size), the class of each channel before; `group` (rows, size), that of the layer behind."""

    classes: Ids
    group: Ids
    groups: int

    def counts(self, flags: Flags) -> Counts:
        """Of each row and group, how many channels have the flag (rows, size)."""
        return np.stack([(flags & (self.group == g)).sum(1) for g in range(self.groups)], 1)

    def places(self, n: int) -> Counts | None:
        """Of each row and group the channels that stay where n stay of each row; None where groups would be unequal."""
        rows = len(self.classes)
        if rows * n % self.groups:
            return None
        place = np.arange(rows * n)
        counts = np.zeros((rows, self.groups), np.int64)
        np.add.at(counts, (place % rows, place // (rows * n // self.groups)), 1)
        return counts

    def fewest(self, keep: Flags) -> Counts:
        """The places for as few as possible, those that are kept (per class) among them."""
        present, available = self.counts(keep[self.classes]), self.counts(np.ones(self.classes.shape, bool))
        for n in range(max(1, int(present.sum(1).max())), self.classes.shape[1]):
            places = self.places(n)
            if places is not None and (present <= places).all() and (places <= available).all():
                return places
        return available


def shuffles(constraints: Iterable[Rows], classes: Ids) -> list[Shuffle]:
    """The shuffles among constraints on rows: of two matrices of the same channels one has the other's columns."""
    parts = [classes[ids] for rows in constraints for ids in rows.parts]
    by_channels: dict[bytes, list[Ids]] = {}
    for part in parts:
        by_channels.setdefault(np.sort(part, None).tobytes(), []).append(part)
    pairs: dict[tuple[bytes, int], Shuffle] = {}
    for same in by_channels.values():
        for a in same:
            for b in same:
                if min(len(a), len(b)) > 1 and a.T.tobytes() == b.tobytes() and len(np.unique(a)) == a.size:
                    group = np.repeat(np.arange(len(b)), b.shape[1]).reshape(a.T.shape).T
                    pairs[a.tobytes(), len(b)] = Shuffle(a, group, len(b))
    return list(pairs.values())


def even_shuffle(shuffle: Shuffle, keep: Flags, keep_more: Callable[[Ids, int], None]) -> None:
    """Keep as few more as the layer behind asks for; `keep_more(classes, count)` keeps so many of some that go."""
    if keep[shuffle.classes].all() or not keep[shuffle.classes].any():
        return
    missing = shuffle.fewest(keep) - shuffle.counts(keep[shuffle.classes])
    for row, group in np.argwhere(missing > 0):
        mine = shuffle.classes[row][shuffle.group[row] == group]
        keep_more(mine, int(missing[row, group]))
