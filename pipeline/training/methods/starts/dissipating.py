"""Dissipating gradients: weights that hardly move from where they began are removed, epoch by epoch
(after the abstract of arXiv 2209.02201; what it leaves open is ours).

After each of the first `epochs_of_removal` epochs the living weights with the smallest |w - w0| / |w0| die, in each
layer, so that the density is met exactly after the last of them. `w0` is decayed as the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.masks import Density, Scored
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, in_scope, largest
from pipeline.training.methods.weights.layers import figures_of, uniform
from pipeline.training.state import TrainState

DENSEST_LAST = 0.2  # the last layer keeps at least this share: with fewer weights classes have no input


class Options(Scored):
    epochs_of_removal: Positive = Field(default=5, description="Epochs after each of which weights are removed.")
    start_density: Density = Field(
        default=1.0, description="Share that lives from the start, at random places, before the first removal."
    )


def dissipating(options: Options, training: Training) -> Hooks:
    """Raises UserError where nothing is to train."""
    weights = in_scope(training.network)
    last, masks = list(weights)[-1], {}
    for index, (name, weight) in enumerate(weights.items()):
        draw = uniform(weight.shape, training.seed, index)
        masks[name] = largest(draw, round(options.start_density * weight.numel())).to(weight.device)
    counts = {
        name: max(1, round(max(options.density, DENSEST_LAST if name == last else 0.0) * weight.numel()))
        for name, weight in weights.items()
    }
    method = Dissipating(counts, options.epochs_of_removal, training, Masks(masks))
    return Hooks(
        begin=method.begin,
        masks=method.masks,
        carried={"start": method.start},
        after_step=method.after_step,
        figures=figures_of(method.masks),
    )


class Dissipating:
    """Down to `counts` living weights of each layer within so many epochs, the first of which begins at step
    `begins`."""

    def __init__(
        self, counts: Mapping[str, int], epochs: int, training: Training, masks: Masks, begins: int = 0
    ) -> None:
        self._counts, self._epochs, self._training, self._begins = counts, epochs, training, begins
        weights = in_scope(training.network)
        self.start = {name: weight.detach().clone() for name, weight in weights.items()}
        """Weight -> its values before the first step, decayed since."""
        self.masks = masks

    def begin(self, state: TrainState) -> None:
        self._optimizer = state.optimizer

    @torch.no_grad()
    def decay(self, position: int) -> None:
        """What a step at this position does to weights without gradient."""
        if self._optimizer.decay:
            for start in self.start.values():
                start.mul_(1.0 - self._training.rate(position) * self._optimizer.decay)

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool, position: int | None = None) -> None:
        """`position`: where its learning rate is another step's."""
        if step < self._begins:
            return
        if stepped:
            self.decay(step if position is None else position)
        epoch, rest = divmod(step + 1 - self._begins, self._training.steps_per_epoch)
        if rest or epoch > self._epochs:
            return
        for name, weight in self.masks.weights.items():
            mask = self.masks.values[name]
            moved = (weight - self.start[name]).abs() / self.start[name].abs().clamp_min(1e-12)
            self.masks.values[name] = largest(moved.masked_fill(~mask, -torch.inf), self._target(name, mask, epoch))
        self.masks.apply()

    def _target(self, name: str, mask: Tensor, epoch: int) -> int:
        """Living weights after this epoch: an equal share of the excess goes after each."""
        end, living = self._counts[name], int(mask.sum())
        rounds_ahead = self._epochs - epoch
        return min(living, end + round((living - end) * rounds_ahead / (rounds_ahead + 1)))
