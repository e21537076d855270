"""Channels that are constant for every input and stay all the same, with the reasons."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from pipeline.surgery.channels.analysis import ASKED, Analysis, where_of
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.cut.choose import Choice

JOINED = "added to, or multiplied by, a channel that stays"
NONE: Ids = np.zeros(0, np.int64)


def constants_that_stay(analysis: Analysis, choice: Choice) -> list[dict[str, Any]]:
    """Per layer the output channels that are constant where they are read, and that an operation asks for: how many,
    and how many for which reason. Dead channels that no operation asks for stand in the groups."""
    ledger = analysis.ledger
    root, constant = ledger.origin(), np.isfinite(ledger.constant(np.arange(ledger.size)))
    first = np.full(ledger.size, ledger.size)  # of each origin the first id after it that is constant
    np.minimum.at(first, root[constant], np.flatnonzero(constant))
    reads = [(read.reason, read.ids, True) for read in ledger.needed]
    at_layers = {where_of(layer.node) for layer in analysis.layers}
    freezes = [*ledger.freezes, *choice.late]  # a layer that cannot be cut keeps channels, whatever they hold
    reads += [(f.reason, f.ids, f.reason != ASKED and f.where not in at_layers) for f in freezes]
    ids = np.concatenate([NONE, *(read[1] for read in reads)])
    about = np.repeat(np.arange(len(reads)), [len(read[1]) for read in reads])
    of_values = np.repeat([read[2] for read in reads], [len(read[1]) for read in reads]).astype(bool)
    alive, alive_class = np.zeros(ledger.size, bool), np.zeros(len(choice.keep), bool)
    early = ids[~constant[ids] & of_values & (ids < first[root[ids]])]
    alive[root[early]], alive_class[choice.classes[ids[~constant[ids]]]] = True, True
    telling = constant[ids] | ~of_values
    why, why_class = (_reasons(keys, about[telling]) for keys in (root[ids[telling]], choice.classes[ids[telling]]))
    rows = []
    for layer in analysis.layers:
        own, mine = root[layer.ids], choice.classes[layer.ids]
        stuck = ~choice.dead[mine] & (((first[own] < ledger.size) & ~alive[own]) | ~alive_class[mine])
        if stuck.any():
            at = [why.get(o, why_class.get(c)) for o, c in zip(own[stuck].tolist(), mine[stuck].tolist(), strict=True)]
            because = Counter(JOINED if i is None else reads[i][0] for i in at)
            name = layer.weight.removesuffix(".weight")
            rows.append({"layer": name, "channels": len(at), "because": dict(because)})
    return rows


def _reasons(keys: Ids, about: Ids) -> dict[int, int]:
    """Of each key the first reading that it is in."""
    entries, at = np.unique(keys, return_index=True)
    return dict(zip(entries.tolist(), about[at].tolist(), strict=True))
