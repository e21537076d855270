"""Decide which channels go: those no reader needs, less what alignment, groups and layouts ask to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.groups import Group, groups_of
from pipeline.surgery.channels.labels import Ids, LayoutError, distinct
from pipeline.surgery.channels.ledger import Flags, Floats, Freeze, Rows
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.shuffles import Shuffle, even_shuffle, shuffles
from pipeline.surgery.rules.layers.weights import array_of


@dataclass
class Choice:
    """Per class: `dead`, no reader needs it; `keep`, it stays. `late` freezes were found while cutting.

    `because`: of a dead class that stays, the reason.
    """

    classes: Ids
    dead: Flags
    keep: Flags
    groups: list[Group]
    late: list[Freeze] = field(default_factory=list)
    because: dict[int, str] = field(default_factory=dict)

    def keep_ids(self) -> Flags:
        return self.keep[self.classes]


class Strength:
    """Of a class the sum of squares of the weights that make it: which of the dead is the most alive."""

    def __init__(self, analysis: Analysis, classes: Ids) -> None:
        self._analysis = analysis
        lengths = [len(layer.ids) for layer in analysis.layers]
        producing = np.concatenate([np.zeros(0, np.int64), *(classes[layer.ids] for layer in analysis.layers)])
        self._order = np.argsort(producing, kind="stable")
        self._producing = producing[self._order]  # class of each output channel of all layers, sorted
        self._layer = np.repeat(np.arange(len(lengths)), lengths)[self._order]
        self._channel = np.concatenate([np.zeros(0, np.int64), *map(np.arange, lengths)])[self._order]
        self._squares = np.full(int(classes.max(initial=-1)) + 1, np.nan)

    def of(self, classes: Ids) -> Floats:
        """`classes` sorted; reads the weights of those alone that were not asked for before."""
        new = classes[np.isnan(self._squares[classes])]
        if len(new):
            self._squares[new] = self._read(new)
        return self._squares[classes]

    def _read(self, classes: Ids) -> Floats:
        low, high = (np.searchsorted(self._producing, classes, side) for side in ("left", "right"))
        at = np.concatenate([np.zeros(0, np.int64), *map(np.arange, low, high)])
        out = np.zeros(len(classes))
        for i in np.unique(self._layer[at]):
            mine = at[self._layer[at] == i]
            layer = self._analysis.layers[i]
            rows = array_of(self._analysis.tensor(layer.weight)).swapaxes(0, layer.axis)
            taken = rows.take(self._channel[mine] % len(rows), 0).reshape(len(mine), -1)
            np.add.at(out, np.searchsorted(classes, self._producing[mine]), np.square(taken, dtype=np.float64).sum(1))
        return out


def choose(
    analysis: Analysis, align: int | Mapping[str, int] = 1, follow: Callable[[Choice], None] | None = None
) -> tuple[Choice, Cut]:
    """The choice and the cut that carries it out. `align` is one multiple, or one per group name."""
    classes = analysis.ledger.classes()
    dead = analysis.ledger.removable(classes)
    producing = np.zeros(len(dead), bool)
    for ids in [*(layer.ids for layer in analysis.layers), *analysis.streams.values()]:
        producing[classes[ids]] = True
    dead &= producing
    choice = Choice(classes, dead, ~dead, groups_of(analysis, classes))
    rank, shuffled = Strength(analysis, classes), shuffles(analysis.ledger.rows, classes)
    if follow is not None:
        follow(choice)
    while True:
        while follow is None and _restore(analysis, choice, align, rank, shuffled):
            pass
        try:
            return choice, Cut(analysis, choice.keep_ids()).run()
        except LayoutError as error:
            if choice.keep.all():
                raise AssertionError(f"cannot lay out the channels: {error.reason}") from error
            wider = [np.unique(classes[ids]) for ids in (error.ids, error.at_node)] + [np.flatnonzero(~choice.keep)]
            back = next(c for c in wider if not choice.keep[c].all())
            choice.because.update(dict.fromkeys(back[~choice.keep[back]].tolist(), error.reason))
            choice.keep[back] = True
            choice.late.append(Freeze("layout", error.reason, np.flatnonzero(np.isin(classes, back))))


def _restore(
    analysis: Analysis, choice: Choice, align: int | Mapping[str, int], rank: Strength, shuffled: list[Shuffle]
) -> bool:
    """One round of keeping more; whether anything changed."""
    before = int(choice.keep.sum())
    widths = [(g.name, g.classes) for g in choice.groups]
    widths += [(name, choice.classes[ids]) for name, ids in analysis.streams.items()]
    for name, mine in widths:
        size = align if isinstance(align, int) else align.get(name, 1)
        count = int(choice.keep[mine].sum())
        more = max(1, -(-count // size) * size) - count
        if count < len(mine) and more:
            why = f"a multiple of {size} channels" if count else "a layer keeps one channel"
            more -= _keep_constant(analysis, choice, mine, why)
            _keep_most_alive(choice, mine, more, rank, why)
    for shuffle in shuffled:  # before rows are made even, which would not ask where in a row
        even_shuffle(
            shuffle, choice.keep, partial(_keep_most_alive, choice, rank=rank, why="the groups behind a shuffle")
        )
    for rows in analysis.ledger.rows:
        _even(choice, rows, rank)
    for ids in [*(layer.ids for layer in analysis.layers), *analysis.streams.values()]:
        mine = choice.classes[ids]
        if not choice.keep[mine].any():
            _keep_most_alive(choice, mine, 1, rank, "a layer keeps one channel")
    for ids in analysis.ledger.padded:
        gone = choice.classes[ids[~choice.keep[choice.classes[ids]]]]
        if len(gone) == 1 and not _taking_up(analysis, choice, ids):
            choice.keep[gone] = True
            choice.because[int(gone[0])] = "the only constant behind zero padding, where none can be folded"
    staying = choice.keep.copy()
    analysis.ledger.follow(choice.classes, choice.keep)
    followers = np.flatnonzero(choice.keep & ~staying).tolist()
    choice.because.update(dict.fromkeys(followers, "the sum that it is added to keeps it"))
    return int(choice.keep.sum()) != before


def _taking_up(analysis: Analysis, choice: Choice, ids: Ids) -> bool:
    """Whether one of the constants behind zero padding stays, so that it takes up the others."""
    return bool((choice.keep[choice.classes[ids]] & ~analysis.ledger.measured(ids)).any())


def _keep_constant(analysis: Analysis, choice: Choice, classes: Ids, why: str) -> int:
    """Of the classes, one more of which stays, keep one that takes up constants which else ask for a channel of ones;
    how many were kept."""
    for ids in analysis.ledger.padded:
        mine = choice.classes[ids]
        able = np.isin(mine, classes) & ~analysis.ledger.measured(ids)
        if len(ids) and able.any() and not choice.keep[mine].all() and not _taking_up(analysis, choice, ids):
            strongest = int(mine[np.where(able, np.abs(analysis.ledger.constant(ids)), 0).argmax()])
            choice.keep[strongest] = True
            choice.because[strongest] = why
            return 1
    return 0


def _even(choice: Choice, rows: Rows, rank: Strength) -> None:
    """Keep more where rows are short, but for those that go altogether."""
    parts = [choice.classes[ids] for ids in rows.parts]
    gone = ~np.any([choice.keep[mine].any(1) for mine in parts], 0) & rows.droppable
    if gone.all():
        gone[0] = False
    for mine in parts:
        counts = choice.keep[mine].sum(1)
        most = max(1, int(counts.max()))
        short = mine[(counts < most) & ~gone]
        rank.of(distinct(short[~choice.keep[short]])[0])  # read at once what each row asks for
        for row in short:
            _keep_most_alive(
                choice, row, most - int(choice.keep[row].sum()), rank, "groups or heads keep equal numbers"
            )


def _keep_most_alive(choice: Choice, classes: Ids, count: int, rank: Strength, why: str) -> None:
    if count > 0:
        gone, _ = distinct(classes[~choice.keep[classes]])
        back = gone[np.argsort(-rank.of(gone), kind="stable")[:count]]
        choice.keep[back] = True
        choice.because.update(dict.fromkeys(back.tolist(), why))
