"""Magnitude pruning by the spread of each layer, with retraining (Han et al. 2015, arXiv 1506.02626).

Of each layer the living weights below `quality` times their standard deviation go; the survivors train on from their
values at a lower rate, and dropout weakens with the connections that are gone: rate * sqrt(living / all). With `phases:
apart` convolutions are pruned and trained on while linear layers stay as they are, then the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.options.masks import Masking, Share
from pipeline.config.section import NonNegative, Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.rounds.rounds import Rounds, round_figures, whole_masks
from pipeline.training.methods.weights.layers import shapes_of, weights_named
from pipeline.training.state import TrainState


class Options(Masking):
    quality: NonNegative = Field(
        default=1.0, description="Threshold of a layer, in standard deviations of its living weights."
    )
    layers: dict[str, NonNegative] = Field(
        default={}, description="Thresholds of single layers, by module name, e.g. {fc: 0.5}; 0: it stays dense."
    )
    rounds: Positive = Field(default=3, description="Prunings, each followed by a retraining.")
    retrain_epochs: Positive = Field(default=10, description="Epochs of each retraining.")
    phases: Literal["together", "apart"] = Field(
        default="together",
        description="apart: in each round convolutions first, linear layers held, then linear layers, all else held; "
        "each phase has its own retraining.",
    )
    retrain_rate: Share = Field(
        default=0.1, description="Learning rate of a retraining, as a share of the training's peak."
    )


def han(options: Options, training: Training) -> Hooks:
    """Raises UserError where a layer is not there."""
    method = Han(options, training)
    return Hooks(
        begin=method.begin, masks=method.masks, steps=method.rounds.steps, after_backward=method.after_backward,
        after_step=method.after_step, between=method.between, rate=method.rate, state=method.state, load=method.load,
        figures=round_figures(method.rounds, method.masks),
    )  # fmt: skip


class Han:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        self.masks = whole_masks(training)
        shapes = shapes_of(training.network)
        self._quality = dict.fromkeys(shapes, options.quality)
        for layer, quality in options.layers.items():
            self._quality[weights_named([layer], shapes).pop()] = quality
        retraining = options.retrain_epochs * training.steps_per_epoch
        linear = {name for name in shapes if isinstance(training.network.get_submodule(name[:-7]), nn.Linear)}
        apart = options.phases == "apart" and 0 < len(linear) < len(shapes)
        self._phases = [set(shapes) - linear, linear] if apart else [set(shapes)]
        """Weights that a pruning looks at, pruning after pruning."""
        self.rounds = Rounds([training.steps] + options.rounds * len(self._phases) * [retraining])
        self._number = 0
        self._held: dict[str, Tensor] = {}
        """Parameters that this phase does not train, as they are."""
        self._peak: float | None = None
        self._dropout: dict[str, float] | None = None
        """Path of each dropout -> its rate before the first pruning."""

    def begin(self, state: TrainState) -> None:
        self._network = state.network
        if self._dropout is None:
            self._dropout = {path: m.p for path, m in state.network.named_modules() if isinstance(m, _Dropout)}

    def after_backward(self, step: int) -> None:
        for name, p in self._network.named_parameters():
            if name in self._held:
                p.grad = None

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        self._weaken_dropout()
        self._number = int(document["round"])
        self._hold(self._number)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"round": self._number}

    def rate(self, step: int) -> float | None:
        if self.rounds.at(step)[0] == 0:
            return None
        if self._peak is None:
            self._peak = max(self._training.rate(place) for place in range(self._training.steps))
        return self._options.retrain_rate * self._peak

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool) -> None:
        if self._held and stepped:  # weight decay is on all parameters alike
            for name, p in self._network.named_parameters():
                if name in self._held:
                    p.copy_(self._held[name])

    @torch.no_grad()
    def between(self, step: int) -> None:
        for number in self.rounds.beginning(step):
            phase = self._phases[(number - 1) % len(self._phases)]
            for name, weight in self.masks.weights.items():
                if name not in phase:
                    continue
                mask = self.masks.values[name]
                threshold = self._quality[name] * float(weight[mask].std(correction=0))
                lives = mask & (weight.abs() >= threshold)
                self.masks.values[name] = lives if bool(lives.any()) else mask
            self.masks.apply()
            self._weaken_dropout()
            self._hold(number)

    def _hold(self, number: int) -> None:
        """Keep what this round does not train."""
        self._held, self._number = {}, number
        if number == 0 or len(self._phases) == 1:
            return
        linear = self._phases[1]
        own = {path for name in linear for path in (name, f"{name[:-7]}.bias")}
        trains_linear = (number - 1) % 2 == 1
        self._held = {
            name: p.detach().clone() for name, p in self._network.named_parameters() if (name in own) != trains_linear
        }

    def _weaken_dropout(self) -> None:
        """By the connections of the layer that reads it, the next in the network's order."""
        assert self._dropout is not None, "begin first"
        waiting: list[tuple[_Dropout, float]] = []
        for path, module in self._network.named_modules():
            if isinstance(module, _Dropout):
                waiting.append((module, self._dropout[path]))
            elif (mask := self.masks.values.get(f"{path}.weight")) is not None:
                for dropout, rate in waiting:
                    dropout.p = rate * float(mask.float().mean()) ** 0.5
                waiting = []


_Dropout = nn.modules.dropout._DropoutNd
