"""BIMP: a training that ends early, then pruning and retraining, within the steps of one training
(Zimmer, Spiegel and Pokutta 2021, arXiv 2111.00843)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.options.masks import Scored
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.rounds.imp import Imp
from runtime.errors import UserError


class Options(Scored):
    dense_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Share of the epochs before the first pruning; the learning rate falls to 0 over them."
    )
    rounds: Positive = Field(default=1, description="Prunings; the rest of the epochs are theirs. 1 to 3 are usual.")
    dense: tuple[str, ...] = Field(default=(), description="Layers that are not pruned, by module name, e.g. [fc].")


def bimp(options: Options, training: Training) -> Hooks:
    """Raises UserError where the rounds have no epoch, where the density leaves less than a weight a layer, or where
    layers are not there."""
    epochs = training.steps // training.steps_per_epoch
    first = max(1, round(options.dense_share * epochs))
    each = (epochs - first) // options.rounds
    if each < 1:
        raise UserError(
            f"{epochs} epochs, {first} of them dense, leave no epoch for each of {options.rounds} rounds",
            "one at least",
            "raise sparse.epochs, or lower sparse.dense_share or sparse.rounds",
        )
    spe, steps = training.steps_per_epoch, first * training.steps_per_epoch
    lengths = [steps, *[each * spe] * (options.rounds - 1)]
    lengths.append(training.steps - sum(lengths))  # steps of a loop of one's own need not be whole epochs
    peak = max(training.rate(place) for place in range(training.steps))

    def before(step: int) -> float:
        """Linear to 0."""
        return peak * (1 - step / steps)

    return Imp(options.density, options.dense, "allr", lengths, training).hooks(before)
