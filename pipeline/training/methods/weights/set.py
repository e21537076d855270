"""SET: after each epoch the weights closest to 0 move to random places (Mocanu et al. 2018, arXiv 1707.04780)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config.options.masks import Evolved
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import largest
from pipeline.training.methods.weights.layers import due_at, figures_of, shapes_of, start_masks, uniform, weights_named


class Options(Evolved):
    """All keys are those of `Evolved`."""


def set_(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density cannot be met."""
    masks, due = start_masks(options, training), due_at(options, training)
    still = weights_named(options.dense, shapes_of(training.network))
    if not options.rewire_last:
        still = still | {list(masks.values)[-1]}

    @torch.no_grad()
    def after_step(step: int, stepped: bool) -> None:
        if not stepped or not due(step):
            return
        for index, (name, weight) in enumerate(masks.weights.items()):
            if name not in still:
                dropped = nearest_zero(weight, masks.values[name], options.drop)
                masks.values[name] &= ~dropped
                places = uniform(weight.shape, training.seed, index, step).to(weight.device)
                masks.grow(name, places, int(dropped.sum()), among=~dropped)
        masks.apply()

    return Hooks(masks=masks, after_step=after_step, figures=figures_of(masks))


def nearest_zero(weight: Tensor, lives: Tensor, share: float) -> Tensor:
    """bool: of the living positive weights the `share` closest to 0, and likewise of the negative ones."""
    dropped = torch.zeros_like(lives)
    for side in (weight > 0, weight <= 0):
        among = lives & side
        count = int(share * int(among.sum()))
        dropped |= largest((-weight.abs()).masked_fill(~among, -torch.inf), count)
    return dropped
