"""Lottery tickets: train, prune the smallest weights, put the others back to what they were at step k, and again
(Frankle and Carbin 2019, arXiv 1803.03635; rewinding to a step k > 0: arXiv 1912.05671).

Learning rate, order of the data and normalisations go back with the weights; the optimizer begins without state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.masks import Masking, Share
from pipeline.config.section import Fraction, Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import largest
from pipeline.training.methods.rounds.rounds import Rounds, keep_largest_of_all, round_figures, whole_masks
from pipeline.training.methods.weights.layers import uniform
from pipeline.training.snapshots.rewind import Start
from pipeline.training.state import TrainState
from runtime.errors import UserError

LAST_LAYER = 0.5  # of the share: of layers that are pruned on their own, the paper spares the last


class Options(Masking):
    rounds: Positive = Field(default=10, description="Prunings, each followed by a training from step k to the end.")
    prune: Share = Field(default=0.2, description="Share of the living weights that a pruning removes.")
    rewind: Fraction = Field(
        default=0.0,
        description="Share of the steps of one training after which weights are kept, to go back to; 0: as they begin. "
        "0.005 to 0.04 for residual networks.",
    )
    layerwise: bool = Field(
        default=False,
        description="Prune each layer on its own, the last at half the share; otherwise all by one threshold.",
    )
    control: Literal["none", "reinit", "shuffle"] = Field(
        default="none",
        description="A change of the last round, for comparison. reinit: the weights it goes back to change places at "
        "random within each layer; shuffle: the masks do.",
    )
    dense: tuple[str, ...] = Field(default=(), description="Layers that are not pruned, by module name, e.g. [fc].")


def lottery_ticket(options: Options, training: Training) -> Hooks:
    """Raises UserError where the training has no steps after the one that it goes back to, or layers are not there."""
    method = LotteryTicket(options, training)
    return Hooks(
        begin=method.begin, masks=method.masks, steps=method.rounds.steps, position=method.position,
        after_step=method.after_step, between=method.between, figures=round_figures(method.rounds, method.masks),
        state=method.state, load=method.load,
    )  # fmt: skip


class LotteryTicket:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        self._back = round(options.rewind * training.steps)
        if self._back >= training.steps:
            raise UserError(
                f"sparse.rewind {options.rewind:g} goes back to the end of the training",
                "steps after it",
                "lower sparse.rewind",
            )
        self.masks = whole_masks(training, options.dense)
        self.rounds = Rounds([training.steps] + options.rounds * [training.steps - self._back])
        self._start = Start()
        """Before step k."""

    def begin(self, state: TrainState) -> None:
        self._state = state
        if not self._start.tensors and not self._back:
            self._start.keep(state)

    def position(self, step: int) -> int:
        number, place = self.rounds.at(step)
        return place if number == 0 else self._back + place

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool) -> None:
        if step + 1 == self._back:
            self._start.keep(self._state)

    @torch.no_grad()
    def between(self, step: int) -> None:
        for number in self.rounds.beginning(step):
            self._prune()
            self._start.put_back(self._state)
            if number == self._options.rounds:
                self._control()
                self._start.tensors = {}  # of no use any more, and a checkpoint is smaller
            self.masks.apply()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self._start.saved(), {}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        self._start.load(tensors, self._training.example[0].device)

    def _prune(self) -> None:
        share = self._options.prune
        if not self._options.layerwise:
            keep_largest_of_all(self.masks, self.masks.living - math.ceil(share * self.masks.living))
            return
        weights = self.masks.weights
        for name, weight in weights.items():
            part = share * LAST_LAYER if name == list(weights)[-1] else share
            living = int(self.masks.values[name].sum())
            self.masks.drop(name, weight.abs(), min(math.ceil(part * living), living - 1))

    def _control(self) -> None:
        for index, (name, weight) in enumerate(self.masks.weights.items()):
            draw = uniform(weight.shape, self._training.seed, index).to(weight.device)
            if self._options.control == "reinit":
                weight.copy_(weight.flatten()[draw.flatten().argsort()].view_as(weight))
            elif self._options.control == "shuffle":
                self.masks.values[name] = largest(draw, int(self.masks.values[name].sum()))
