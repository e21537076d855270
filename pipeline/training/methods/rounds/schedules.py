"""Learning rates of a retraining after pruning (arXiv 2111.00843), beside those of the training before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Retrain = Literal["ft", "lrw", "slr", "clr", "llr", "allr"]
RISE = 0.1
"""Share of a retraining over which the learning rate rises from 0; not for ft and lrw."""


def retraining_rate(schedule: Retrain, place: int, length: int, rates: Sequence[float], damage: float = 1.0) -> float:
    """Of the step `place` of a retraining of `length` steps, after a training at `rates`, step by step.

    ft: its lowest rate after the warm-up. lrw: its last rates again. slr: its whole curve squeezed, the peak in the
    place of the warm-up. clr: cosine from its peak to its lowest. llr: linear from the peak to 0. allr: linear from
    `damage` (0..1, see `adaptive`) times the peak to 0.
    """
    if schedule == "lrw":
        return rates[min(max(0, len(rates) - length) + place, len(rates) - 1)]
    top = max(range(len(rates)), key=rates.__getitem__)
    peak, lowest = rates[top], min(rates[top:])
    if schedule == "ft":
        return lowest
    rise = int(RISE * length)
    share = max(0, place - rise) / (length - rise)
    if schedule == "slr":
        rate = rates[max(top, int(share * len(rates)))]
    elif schedule == "clr":
        rate = lowest + (peak - lowest) * (1 + math.cos(math.pi * share)) / 2
    else:
        rate = (damage if schedule == "allr" else 1.0) * peak * (1 - share)
    return rate * (1 - math.cos(math.pi * place / rise)) / 2 if place < rise else rate


def adaptive(distance: float, fraction: float, epochs: int, epochs_before: int) -> float:
    """Share of the peak that allr begins at: ||w - w_pruned|| / ||w|| (`distance`) over the root of the fraction of
    weights that the pruning removed, at least `epochs` of the retraining over those before, at most 1."""
    return max(min(epochs / epochs_before, 1.0), min(1.0, distance / math.sqrt(fraction)))
