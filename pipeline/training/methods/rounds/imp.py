"""IMP: iterative magnitude pruning of a trained network, each pruning followed by a retraining; the retraining's
learning rates decide how well it does (Zimmer, Spiegel and Pokutta 2021, arXiv 2111.00843)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.masks import Scored
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.rounds.rounds import Rounds, keep_largest_of_all, round_figures, whole_masks
from pipeline.training.methods.rounds.schedules import Retrain, adaptive, retraining_rate
from pipeline.training.state import TrainState
from runtime.errors import UserError


class Options(Scored):
    rounds: Positive = Field(default=1, description="Prunings; each removes the same share of the living weights.")
    retrain_epochs: Positive = Field(
        default=10, description="Epochs of all retrainings; what the rounds do not divide goes to the last."
    )
    retrain: Literal["ft", "lrw", "slr", "clr", "llr", "allr"] = Field(
        default="allr",
        description="Learning rates of a retraining. ft: the training's lowest; lrw: its last again; slr: its curve "
        "squeezed; clr: cosine from its peak; llr: linear from its peak to 0; allr: linear from a rate that follows "
        "how much the pruning changed.",
    )
    dense: tuple[str, ...] = Field(default=(), description="Layers that are not pruned, by module name, e.g. [fc].")


def imp(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density leaves less than a weight a layer, or layers are not there."""
    each, rest = divmod(options.retrain_epochs, options.rounds)
    epochs = [each] * (options.rounds - 1) + [each + rest]
    lengths = [training.steps, *(count * training.steps_per_epoch for count in epochs)]
    method = Imp(options.density, options.dense, options.retrain, lengths, training)
    return method.hooks(training.rate)


class Imp:
    """Of `lengths` steps: a training, then retrainings."""

    def __init__(
        self, density: float, dense: tuple[str, ...], retrain: Retrain, lengths: list[int], training: Training
    ) -> None:
        self.rounds, self.masks = Rounds(lengths), whole_masks(training, dense)
        self._density, self._retrain, self._training = density, retrain, training
        self._share_of_round = density ** (1 / (len(lengths) - 1))
        """Share of the living weights that a pruning leaves."""
        self._damage: list[float] = []
        """Of each pruning so far, for allr."""
        self._before: list[float] = []
        """Learning rates of the first phase, once it is over."""
        size, layers = self.masks.size, len(self.masks.values)
        if density * size < layers:
            raise UserError(
                f"sparse.density {density:g} of {size:,} weights is less than one weight for each of the {layers} "
                "layers",
                f"at least {layers / size:.2g}",
                "raise sparse.density",
            )

    def hooks(self, before: Callable[[int], float]) -> Hooks:
        """`before`: step -> learning rate of the first phase, which the others follow."""
        return Hooks(
            begin=self.begin, masks=self.masks, steps=self.rounds.steps, between=self.between,
            rate=lambda step: self.rate(step, before), state=self.state, load=self.load,
            figures=round_figures(self.rounds, self.masks),
        )  # fmt: skip

    def begin(self, state: TrainState) -> None:
        self._state = state

    def rate(self, step: int, before: Callable[[int], float]) -> float:
        number, place = self.rounds.at(step)
        if number == 0:
            return float(before(step))
        if not self._before:
            self._before = [before(early) for early in range(self.rounds.lengths[0])]
        length, damage = self.rounds.lengths[number], self._damage[number - 1]
        return retraining_rate(self._retrain, place, length, self._before, damage)

    @torch.no_grad()
    def between(self, step: int) -> None:
        for number in self.rounds.beginning(step):
            if number == 1:  # a fresh optimizer, which the later rounds go on with
                self._state.optimizer.inner.state.clear()
            self._prune(number)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"damage": self._damage}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        self._damage = [float(value) for value in document["damage"]]

    def _prune(self, number: int) -> None:
        before = self._norm()
        keep_largest_of_all(self.masks, round(self.masks.size * self._share_of_round**number))
        after = self._norm()  # what is pruned is orthogonal to what stays: Pythagoras gives the distance
        distance = (max(0.0, before**2 - after**2) ** 0.5) / max(before, 1e-30)
        spe = self._training.steps_per_epoch
        epochs, epochs_before = self.rounds.lengths[number] // spe, self.rounds.lengths[0] // spe
        fraction = max(1 - self._share_of_round, 1e-12)
        self._damage.append(adaptive(distance, fraction, epochs, epochs_before))

    def _norm(self) -> float:
        """L2 of all weights, biases and normalisations."""
        squares = [p.detach().double().square().sum() for p in self._state.network.parameters()]
        return float(torch.stack(squares).sum().sqrt())
