"""Chase: dynamic sparse training over the whole network, in which the sparsest channels are given up for good
(Yin et al. 2023, arXiv 2305.19454)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.masks import Rewired
from pipeline.config.section import Fraction
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import cosine_share, largest
from pipeline.training.methods.weights.layers import due_at, figures_of, start_masks, weights_named


class Options(Rewired):
    channels: Fraction = Field(
        default=0.3, description="Share of the output channels that is given up in the end, of all layers but the last."
    )
    floor: Fraction = Field(default=0.2, description="Share of each layer's output channels that stays at least.")


def chase(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density cannot be met."""
    method = Chase(options, training)
    return Hooks(
        masks=method.masks, after_step=method.after_step, figures=method.figures, state=method.state, load=method.load
    )


class Chase:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._due = options, due_at(options, training)
        self._end = max(1, int(options.until * training.steps))
        self.masks = start_masks(options, training)
        self._count, self._share = self.masks.living, cosine_share(options.drop, self._end)
        self._dense = weights_named(options.dense, {name: mask.shape for name, mask in self.masks.values.items()})
        self.gone = {
            name: torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
            for name, mask in self.masks.values.items()
        }
        """Weight -> output channels that were given up."""

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool) -> None:
        if not stepped or not self._due(step):
            return
        self._give_up(step)
        self._move(self._share(step))
        self.masks.apply()

    def figures(self, step: int) -> dict[str, Any]:
        return {
            **figures_of(self.masks)(step),
            "channels_given_up": {
                name.removesuffix(".weight"): int(gone.sum()) for name, gone in self.gone.items() if bool(gone.any())
            },
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {name: gone.to(torch.uint8) for name, gone in self.gone.items()}, {}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        for name, value in tensors.items():
            self.gone[name] = value.bool().to(self.gone[name].device)

    def _give_up(self, step: int) -> None:
        """So many channels as the cubic schedule asks for by now, those with the smallest mean |w| first."""
        names = [name for name in list(self.masks.values)[:-1] if name not in self._dense]
        size = sum(len(self.gone[name]) for name in names)
        progress = min(1.0, (step + 1) / self._end)
        due = int(self._options.channels * (1 - (1 - progress) ** 3) * size)
        due -= sum(int(self.gone[name].sum()) for name in names)
        weights = self.masks.weights
        means = {name: weights[name].abs().flatten(1).mean(1) for name in names}
        order = sorted((float(mean), name, channel) for name in names for channel, mean in enumerate(means[name]))
        for _, name, channel in order:
            gone = self.gone[name]
            room = len(gone) - int(gone.sum()) - 1 >= max(1, self._options.floor * len(gone))
            if due > 0 and room and not bool(gone[channel]):
                gone[channel] = True
                self.masks.values[name][channel] = False
                due -= 1

    def _move(self, share: float) -> None:
        """Over all layers together: the smallest living weights die, and as many as the budget has room for come to
        life by their gradients. Each layer keeps its largest weight."""
        names = [name for name in self.masks.values if name not in self._dense]
        weights = self.masks.weights
        size = torch.cat([self._of_living(name, weights[name].abs()) for name in names])
        budget = self._count - sum(int(self.masks.values[name].sum()) for name in self._dense)
        count = int(torch.isfinite(size).sum())
        stay = largest(size, min(count, round(count * (1 - share))))
        parts = dict(zip(names, torch.split(stay, [weights[name].numel() for name in names]), strict=True))
        gains = []
        for name in names:
            part = parts[name]
            part[int(self._of_living(name, weights[name].abs()).argmax())] = True
            gradient = weights[name].grad
            gain = torch.zeros_like(weights[name]) if gradient is None else gradient.abs()
            gain[self.gone[name]] = -torch.inf
            gains.append(gain.flatten().masked_fill(part, -torch.inf))
        flat, room = torch.cat(gains), budget - sum(int(part.sum()) for part in parts.values())
        come = largest(flat, max(0, min(room, int(torch.isfinite(flat).sum()))))
        for name, new in zip(names, torch.split(come, [weights[name].numel() for name in names]), strict=True):
            self.masks.values[name] = (parts[name] | new).view_as(weights[name])

    def _of_living(self, name: str, values: Tensor) -> Tensor:
        return values.masked_fill(~self.masks.values[name], -torch.inf).flatten()
