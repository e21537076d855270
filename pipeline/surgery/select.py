"""Decide which channels go: those no reader needs, less what alignment, groups and layouts ask to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.cut import Cut
from pipeline.surgery.labels import Ids, LayoutError
from pipeline.surgery.ledger import Flags, Floats, Freeze


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
    owner: dict[int, int] = {}
    members: list[list[int]] = []
    for i, layer in enumerate(analysis.layers):
        mine = np.unique(classes[layer.ids]).tolist()
        touching = sorted({owner[c] for c in mine if c in owner})
        home = touching[0] if touching else len(members)
        if not touching:
            members.append([])
        members[home].append(i)
        for other in touching[1:]:
            members[home] += members[other]
            members[other] = []
            owner.update({c: home for c, o in owner.items() if o == other})
        owner.update(dict.fromkeys(mine, home))
    groups = []
    for member in members:
        if member:
            layers = [analysis.layers[i] for i in sorted(member)]
            flat = classes[np.concatenate([layer.ids for layer in layers])]
            _, first = np.unique(flat, return_index=True)
            groups.append(Group(layers[0].name, tuple(x.name for x in layers), flat[np.sort(first)]))
    return groups


class Strength:
    """Per class the sum of squares of the weights that make it: which of the dead is the most alive."""

    def __init__(self, analysis: Analysis, classes: Ids) -> None:
        self._analysis, self._classes = analysis, classes

    @cached_property
    def of_class(self) -> Floats:
        out = np.zeros(int(self._classes.max()) + 1)
        for layer in self._analysis.layers:
            weight = self._analysis.tensor(layer.weight).detach()
            norms = torch.linalg.vector_norm(weight.movedim(layer.axis, 0).flatten(1), dim=1).cpu().double().numpy()
            np.add.at(out, self._classes[layer.ids], np.resize(norms, len(layer.ids)) ** 2)
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
        most = max(1, int(choice.keep[mine].sum(1).max()))
        for row in mine:
            _keep_most_alive(choice, row, most - int(choice.keep[row].sum()), rank)
    for ids in [*(layer.ids for layer in analysis.layers), *analysis.streams.values()]:
        mine = choice.classes[ids]
        if not choice.keep[mine].any():
            _keep_most_alive(choice, mine, 1, rank)
    analysis.ledger.follow(choice.classes, choice.keep)
    return int(choice.keep.sum()) != before


def _keep_most_alive(choice: Choice, classes: Ids, count: int, rank: Strength) -> None:
    gone = np.unique(classes[~choice.keep[classes]])
    if count > 0:
        choice.keep[gone[np.argsort(-rank.of_class[gone], kind="stable")[:count]]] = True
