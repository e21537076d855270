"""Which channels have to go for a network to land on a share of its size, and in which order.

Channels go in blocks, of which those that matter least for what they cost go first. Where the next block is too large a
step, its group stays and others go instead; where no others are left either, that block goes after all, and what
mattered most comes back. So wide steps (aligned widths, residual streams) neither miss the target nor leave everything
else at its floor.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.surgery.channels.groups import Group
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.channels.ledger import Flags, Floats

NEAR = 0.01
"""How near to the target a selection has to come, as a share of it."""


@dataclass(frozen=True)
class Block:
    """Classes of one group that go together, after the blocks of their group that stand before it."""

    group: str
    classes: Ids


@dataclass(frozen=True)
class Limits:
    """What stays of each group: `floor`, a share of its first width, in `widths` by name, in multiples of `align`."""

    widths: Mapping[str, int]
    floor: float
    align: int = 1

    def width(self, group: Group) -> int:
        """Of the dense network."""
        return int(self.widths.get(group.name, len(group.classes)))

    def least(self, group: Group) -> int:
        share = math.ceil(self.floor * self.width(group))
        return max(1, -(-int(share) // self.align) * self.align)


def blocks_of(
    groups: Sequence[Group], may_go: Flags, matters: Floats, cost: Floats, limits: Limits, crowding: int = 0
) -> list[Block]:
    """Classes in the order they may go: by `matters` over `cost`, both (count,), within a group the least first, in
    steps of the alignment. A block of a group with n of `width` channels counts (width / n)**crowding as much. Of rows
    that keep equal numbers one class each goes at once.
    """
    scored: list[tuple[float, Block]] = []
    for group in groups:
        every = np.unique(group.classes[may_go[group.classes]])
        units = _units(group, every, matters, cost)
        ends = list(itertools.accumulate(len(unit) for unit in units))
        stops = [e for e in ends if len(every) - e >= limits.least(group) and (len(every) - e) % limits.align == 0]
        mine = np.concatenate([np.empty(0, np.int64), *units])
        worst = -math.inf
        for a, b in itertools.pairwise([0, *stops]):
            part = limits.width(group) / (len(every) - a)
            score = part**crowding * float(matters[mine[a:b]].sum() / cost[mine[a:b]].sum())
            worst = max(worst, score)  # a block never goes before one of its group that matters less
            scored.append((worst, Block(group.name, mine[a:b])))
    return [block for _, block in sorted(scored, key=lambda pair: pair[0])]


def _units(group: Group, every: Ids, matters: Floats, cost: Floats) -> list[Ids]:
    """Classes that go at once, the least first: each by itself, or one of each row."""
    ordered = every[np.argsort(matters[every] / cost[every], kind="stable")]
    if not group.rows:
        return [ordered[i : i + 1] for i in range(len(ordered))]
    units = [np.array([c]) for c in ordered[~np.isin(ordered, np.concatenate([m.ravel() for m in group.rows]))]]
    for matrix in group.rows:
        rows = [ordered[np.isin(ordered, row)] for row in matrix]
        count = min(len(matrix[0]) - 1, *map(len, rows))  # one of each row stays, and what a row has more than another
        units += [np.array([row[k] for row in rows]) for k in range(count)]
    return sorted(units, key=lambda unit: float(matters[unit].sum() / cost[unit].sum()))


class Route:
    """`blocks` in the order they may go from the classes `alive` (count,); `share(left)` is what a set of classes comes
    to as a share of the first network, and falls with every block; `asked` is the share to land on."""

    def __init__(self, blocks: Sequence[Block], alive: Flags, share: Callable[[Flags], float], asked: float) -> None:
        self._blocks, self._alive, self._share, self._asked = blocks, alive, share, asked

    def whole(self) -> list[Block]:
        """All that have to go, in order: what is left then is as near to the target as the blocks allow."""
        taken, skipped = self._down()
        if self._reached(taken):
            return [self._blocks[i] for i in taken]
        others = [self._instead(taken, i) for i in skipped]
        best = min([taken, *others], key=lambda gone: abs(self._without(gone) - self._asked))
        return [self._blocks[i] for i in best]

    def until(self, waypoint: float) -> Flags:
        """(count,): of all that have to go, the first that bring the network to this share."""
        remaining = self._alive.copy()
        for block in self.whole():
            if self._share(remaining) <= (1 + NEAR) * waypoint:
                break
            remaining[block.classes] = False
        return self._alive & ~remaining

    def _down(self) -> tuple[list[int], list[int]]:
        """Blocks to go without passing the target, and the first of each group that would pass it."""
        taken: list[int] = []
        skipped: list[int] = []
        rest = list(range(len(self._blocks)))
        while rest and not self._reached(taken):
            count = self._to_reach(taken, rest)
            if count is None:
                return taken + rest, skipped
            if self._without(taken + rest[:count]) >= (1 - NEAR) * self._asked:
                return taken + rest[:count], skipped
            taken += rest[: count - 1]
            skipped.append(rest[count - 1])
            rest = self._of_other_groups(rest[count:], skipped[-1])
        return taken, skipped

    def _instead(self, taken: list[int], large: int) -> list[int]:
        """`taken` and the large block, less those that may come back, what matters most first."""
        gone = {*taken, large}
        rest = self._of_other_groups(taken[::-1], large)
        while rest:
            count = self._too_many(gone, rest)
            if count is None:
                gone -= {*rest}
                break
            gone -= {*rest[: count - 1]}
            rest = self._of_other_groups(rest[count:], rest[count - 1])
        return sorted(gone)

    def _to_reach(self, taken: Sequence[int], rest: Sequence[int]) -> int | None:
        """How many of `rest` have to go too to reach the target."""
        return _first(lambda count: self._reached([*taken, *rest[:count]]), len(rest))

    def _too_many(self, gone: set[int], rest: Sequence[int]) -> int | None:
        """How many of `rest` must not come back."""
        return _first(lambda count: not self._reached([*gone.difference(rest[:count])]), len(rest))

    def _of_other_groups(self, numbers: Sequence[int], number: int) -> list[int]:
        return [i for i in numbers if self._blocks[i].group != self._blocks[number].group]

    def _without(self, gone: Sequence[int]) -> float:
        remaining = self._alive.copy()
        if gone:
            remaining[np.concatenate([self._blocks[i].classes for i in gone])] = False
        return self._share(remaining)

    def _reached(self, gone: Sequence[int]) -> bool:
        return self._without(gone) <= (1 + NEAR) * self._asked


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest of 1 to `most` for which `holds`, which then holds for all above; None where it does for none."""
    at = bisect_left(range(1, most + 1), True, key=holds)
    return at + 1 if at < most else None
