"""Layers whose output channels live and go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.labels import Ids, rising


@dataclass(frozen=True)
class Group:
    """Layers whose output channels live and go together; `classes` (C,) in the order of the first layer.

    `rows`: matrices of classes (R, C), of which every row keeps as many, such as the heads of attention.
    """

    name: str
    layers: tuple[str, ...]
    classes: Ids
    rows: tuple[Ids, ...] = ()


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


def with_rows(groups: Sequence[Group], analysis: Analysis, classes: Ids) -> list[Group]:
    """The groups, each with the rows that the ledger has of it; where rows of two kinds share classes, the finer."""
    matrices = [_distinct_rows(classes[part]) for rows in analysis.ledger.rows for part in rows.parts]
    matrices = sorted((m for m in matrices if len(m) > 1 and len(np.unique(m)) == m.size), key=len, reverse=True)
    result = []
    for group in groups:
        taken, own = np.zeros(int(classes.max(initial=-1)) + 1, bool), list[Ids]()
        for matrix in matrices:
            if np.isin(matrix, group.classes).all() and not taken[matrix].any():
                taken[matrix] = True
                own.append(matrix)
        result.append(replace(group, rows=tuple(own)))
    return result


def _distinct_rows(matrix: Ids) -> Ids:
    """(R, C) -> without rows that hold the same classes as one before."""
    return matrix[np.sort(np.unique(np.sort(matrix, 1), axis=0, return_index=True)[1])]
