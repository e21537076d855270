"""SRigL: RigL with the same number of weights in each output channel, and channels that have too few salient ones given
up (Lasby et al. 2024, arXiv 2305.02299, section 3.1).

With `grain: kernel` whole kernels live and move, the same number in each output channel: what a gather form of the
convolution wants.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.masks import Rewired
from pipeline.config.section import Fraction
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, cosine_share, in_scope, largest
from pipeline.training.methods.weights.layers import counts_of, due_at, figures_of, uniform, weights_named
from pipeline.training.methods.weights.rigl import alive, grains_of, spread, units


class Options(Rewired):
    grain: Literal["weight", "kernel"] = Field(
        default="weight",
        description="What lives or dies: single weights, or whole kernels of convolutions.",
    )
    salient: Fraction = Field(
        default=0.3,
        description="An output channel is given up where fewer than this share of its weights are salient: among the "
        "layer's largest, or among those with the largest gradients; 0 gives none up. The last layer gives none up.",
    )


def srigl(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density cannot be met."""
    grains = grains_of(training.network, options.grain)
    counts = {n: max(1, round(count / grains[n])) for n, count in counts_of(options, training.network).items()}
    masks, last = start(counts, training, grains), list(counts)[-1]
    dense = weights_named(options.dense, {name: mask.shape for name, mask in masks.values.items()})
    due = due_at(options, training)
    share = cosine_share(options.drop, max(1, int(options.until * training.steps)))

    @torch.no_grad()
    def after_step(step: int, stepped: bool) -> None:
        if not stepped or not due(step):
            return
        for name, weight in masks.weights.items():
            if name in dense or weight.grad is None or bool(masks.values[name].all()):
                continue
            salient = 0.0 if name == last else options.salient
            grain, size, gain = grains[name], units(weight, grains[name]), units(weight.grad, grains[name])
            lives = rewired(alive(masks.values[name], grain), size, gain, counts[name], share(step), salient)
            masks.values[name] = spread(lives, weight)
        masks.apply()

    return Hooks(masks=masks, after_step=after_step, figures=figures_of(masks))


def start(counts: dict[str, int], training: Training, grains: dict[str, int]) -> Masks:
    """Random, with the same number of living weights, or kernels, in each output channel."""
    values = {}
    for index, (name, weight) in enumerate(in_scope(training.network).items()):
        places = uniform(weight.shape if grains[name] == 1 else weight.shape[:2], training.seed, index)
        rows = places.flatten(1)
        fan_in = max(1, min(rows.shape[1], round(counts[name] / len(rows))))
        lives = torch.stack([largest(row, fan_in) for row in rows]).view_as(places)
        values[name] = spread(lives.to(weight.device), weight)
    return Masks(values)


def rewired(mask: Tensor, weight: Tensor, gradient: Tensor, count: int, share: float, salient: float) -> Tensor:
    """The mask after a change. Of `count` living weights the largest stay, as many as `share` leaves; channels that
    are given up hand their weights to the others, whose number of weights is the same again; places that are free in a
    channel go to its largest gradients."""
    lives, size, gain = mask.flatten(1), weight.abs().flatten(1), gradient.abs().flatten(1)
    active = lives.any(1)
    moving = int(share * int(lives.sum()))
    stay = largest(size.masked_fill(~lives, -torch.inf), int(lives.sum()) - moving)
    come = largest(gain.masked_fill(stay | ~active[:, None], -torch.inf), moving)
    of_channel = int(lives.sum()) / max(1, int(active.sum()))
    enough = (stay | come).sum(1) >= salient * of_channel
    active = active & enough if bool((active & enough).any()) else active
    fan_in = max(1, min(lives.shape[1], round(count / int(active.sum()))))
    order = torch.where(stay, 1 + size / size.max().clamp_min(1e-30), gain / gain.max().clamp_min(1e-30) * (1 - 1e-6))
    new = torch.zeros_like(lives)
    for row in active.nonzero().flatten().tolist():
        new[row] = largest(order[row], fan_in)
    return new.view_as(mask)
