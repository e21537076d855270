"""Decide which channels go: those no reader needs, less what alignment, groups and layouts ask to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.cut import Cut
from pipeline.surgery.labels import Ids, LayoutError, distinct, rising
from pipeline.surgery.ledger import Flags, Floats, Freeze
from pipeline.surgery.rules.weights import array_of


@dataclass(frozen=True)
class Group:
    """Layers whose output channels live and go together; `classes` (C,) in the order of the first layer."""

    name: str
    layers: tuple[str, ...]
    classes: Ids


@dataclass
class Choice:
    """Per class: `dead`, no reader needs it; `keep`, it stays. `late` freezes were found while cutting."""

    classes: Ids
    dead: Flags
    keep: Flags
    groups: list[Group]
    late: list[Freeze] = field(default_factory=list)

    def keep_ids(self) -> Flags:
        return self.keep[self.classes]


def groups_of(analysis: Analysis, classes: Ids) -> list[Group]:
    """Layers that share a class form one group."""
    owner = np.full(int(classes.max(initial=-1)) + 1, -1)  # of each class the group
    members: list[list[int]] = []
    for i, layer in enumerate(analysis.layers):
        mine = classes[layer.ids]
        touching = [group for group in np.unique(owner[mine]).tolist() if group >= 0]
        home = touching[0] if touching else len(members)
        if not touching:
            members.append([])
        members[home].append(i)
        for other in touching[1:]:
            members[home] += members[other]
            members[other] = []
            owner[owner == other] = home
        owner[mine] = home
    groups = []
    for member in members:
        if member:
            layers = [analysis.layers[i] for i in sorted(member)]
            flat = classes[np.concatenate([layer.ids for layer in layers])]
            if not rising(flat):
                flat = flat[np.sort(np.unique(flat, return_index=True)[1])]
            groups.append(Group(layers[0].name, tuple(x.name for x in layers), flat))
    return groups


class Strength:
    """Of a class the sum of squares of the weights that make it: which of the dead is the most alive."""

    def __init__(self, analysis: Analysis, classes: Ids) -> None:
        self._analysis = analysis
        lengths = [len(layer.ids) for layer in analysis.layers]
        made = np.concatenate([np.zeros(0, np.int64), *(classes[layer.ids] for layer in analysis.layers)])
        self._order = np.argsort(made, kind="stable")
        self._made = made[self._order]  # class of each output channel of all layers, sorted
        self._layer = np.repeat(np.arange(len(lengths)), lengths)[self._order]
        self._channel = np.concatenate([np.zeros(0, np.int64), *map(np.arange, lengths)])[self._order]
        self._known = np.full(int(classes.max(initial=-1)) + 1, np.nan)

    def of(self, classes: Ids) -> Floats:
        """`classes` sorted; reads the weights of those alone that were not asked for before."""
        new = classes[np.isnan(self._known[classes])]
        if len(new):
            self._known[new] = self._read(new)
        return self._known[classes]

    def _read(self, classes: Ids) -> Floats:
        low, high = (np.searchsorted(self._made, classes, side) for side in ("left", "right"))
        at = np.concatenate([np.zeros(0, np.int64), *map(np.arange, low, high)])
        out = np.zeros(len(classes))
        for i in np.unique(self._layer[at]):
            mine = at[self._layer[at] == i]
            layer = self._analysis.layers[i]
            rows = array_of(self._analysis.tensor(layer.weight)).swapaxes(0, layer.axis)
            taken = rows.take(self._channel[mine] % len(rows), 0).reshape(len(mine), -1)
            np.add.at(out, np.searchsorted(classes, self._made[mine]), np.square(taken, dtype=np.float64).sum(1))
        return out


def choose(
    analysis: Analysis, align: int | Mapping[str, int] = 1, wanted: Callable[[Choice], None] | None = None
) -> tuple[Choice, Cut]:
    """The choice and the cut that carries it out. `align` is one multiple, or one per group name."""
    classes = analysis.ledger.classes()
    dead = analysis.ledger.removable(classes)
    made = np.zeros(len(dead), bool)
    for ids in [*(layer.ids for layer in analysis.layers), *analysis.streams.values()]:
        made[classes[ids]] = True
    dead &= made
    choice = Choice(classes, dead, ~dead, groups_of(analysis, classes))
    rank = Strength(analysis, classes)
    if wanted is not None:
        wanted(choice)
    while True:
        while wanted is None and _restore(analysis, choice, align, rank):
            pass
        try:
            return choice, Cut(analysis, choice.keep_ids()).run()
        except LayoutError as error:
            back = np.unique(classes[error.ids])
            if choice.keep[back].all():
                raise AssertionError(f"cannot lay out the channels: {error.reason}") from error
            choice.keep[back] = True
            choice.late.append(Freeze("layout", error.reason, error.ids))


def _restore(analysis: Analysis, choice: Choice, align: int | Mapping[str, int], rank: Strength) -> bool:
    """One round of keeping more; whether anything changed."""
    before = int(choice.keep.sum())
    widths = [(g.name, g.classes) for g in choice.groups]
    widths += [(name, choice.classes[ids]) for name, ids in analysis.streams.items()]
    for name, mine in widths:
        size = align if isinstance(align, int) else align.get(name, 1)
        count = int(choice.keep[mine].sum())
        if count < len(mine):
            _keep_most_alive(choice, mine, max(1, -(-count // size) * size) - count, rank)
    for rows in analysis.ledger.rows:
        mine = choice.classes[rows]
        kept = choice.keep[mine].sum(1)
        most = max(1, int(kept.max()))
        short = mine[kept < most]
        rank.of(distinct(short[~choice.keep[short]])[0])  # read at once what each row asks for
        for row in short:
            _keep_most_alive(choice, row, most - int(choice.keep[row].sum()), rank)
    for ids in [*(layer.ids for layer in analysis.layers), *analysis.streams.values()]:
        mine = choice.classes[ids]
        if not choice.keep[mine].any():
            _keep_most_alive(choice, mine, 1, rank)
    analysis.ledger.follow(choice.classes, choice.keep)
    return int(choice.keep.sum()) != before


def _keep_most_alive(choice: Choice, classes: Ids, count: int, rank: Strength) -> None:
    if count > 0:
        gone, _ = distinct(classes[~choice.keep[classes]])
        choice.keep[gone[np.argsort(-rank.of(gone), kind="stable")[:count]]] = True
