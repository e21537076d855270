"""Rounds: a first phase of the training, then one after each pruning."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from pipeline.training.hooks import Training
from pipeline.training.masks import Masks, in_scope, largest
from pipeline.training.methods.weights.layers import figures_of, shapes_of, weights_named
from runtime.errors import UserError


class Rounds:
    """The steps of each; a round of no steps is a pruning alone, the last round has some."""

    def __init__(self, lengths: Sequence[int]) -> None:
        assert lengths[-1] > 0, lengths
        self._ends = list(itertools.accumulate(lengths))
        self.lengths = tuple(lengths)

    @property
    def steps(self) -> int:
        return self._ends[-1]

    def at(self, step: int) -> tuple[int, int]:
        """Number of the round that the step lies in, and its place there; both count from 0."""
        number = min(bisect_right(self._ends, step), len(self.lengths) - 1)
        return number, step - self._ends[number] + self.lengths[number]

    def beginning(self, step: int) -> range:
        """Rounds that begin after this step."""
        return range(self.at(step)[0] + 1, self.at(step + 1)[0] + 1)


def whole_masks(training: Training, dense: Collection[str] = ()) -> Masks:
    """Of every weight in scope but those of the layers in `dense`; all entries live. Raises UserError where a layer is
    not there, or where none is open to pruning."""
    shapes = shapes_of(training.network)
    skip = weights_named(dense, shapes)
    if not shapes.keys() - skip:
        raise UserError("sparse.dense names every layer", "a layer that may be pruned", "name fewer")
    device = training.example[0].device
    return Masks({
        name: torch.ones_like(weight, dtype=torch.bool, device=device)
        for name, weight in in_scope(training.network, skip).items()
    })  # fmt: skip


def keep_largest_of_all(masks: Masks, count: int) -> None:
    """The `count` largest |w| of all living weights live on, by one global threshold, and at least one of each layer.
    Puts the masks in force."""
    weights = masks.weights
    sizes = {n: w.detach().abs().masked_fill(~masks.values[n], -math.inf).flatten() for n, w in weights.items()}
    for size in sizes.values():
        size[size.argmax()] = math.inf  # a layer without any weight would cut the network in two
    lives = largest(torch.cat(list(sizes.values())), min(max(count, len(sizes)), masks.living))
    parts = torch.split(lives, [size.numel() for size in sizes.values()])
    for (name, mask), part in zip(masks.values.items(), parts, strict=True):
        masks.values[name] = part.view_as(mask)
    masks.apply()


def round_figures(rounds: Rounds, masks: Masks) -> Callable[[int], dict[str, Any]]:
    """Columns of the history: `round` (0 before the first pruning) and the densities."""
    densities = figures_of(masks)
    return lambda step: {"round": rounds.at(step)[0], **densities(step)}
