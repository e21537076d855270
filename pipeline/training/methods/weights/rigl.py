"""RigL: the smallest weights move to where the gradient is largest (Evci et al. 2020, arXiv 1911.11134, algorithm 1).

With `grain: kernel` whole 2-D kernels move, and with `fan_in` each output channel reads so many input channels: what a
gather form of the convolution wants.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.options.masks import Rewired
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, cosine_share, in_scope, largest
from pipeline.training.methods.weights.layers import due_at, figures_of, shapes_of, start_masks, uniform, weights_named
from runtime.errors import UserError

TIE_NOISE = 1e-5
"""The most that is added to a magnitude, so that equal ones are dropped at random."""


class Options(Rewired):
    grain: Literal["weight", "kernel"] = Field(
        default="weight",
        description="What lives or dies: single weights, or whole kernels of convolutions.",
    )
    fan_in: Positive | None = Field(
        default=None,
        description="Kernels (or weights) that each output channel reads, the same for all, in place of `density`; "
        "null: by `density` and `distribution`.",
    )


def rigl(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density cannot be met."""
    grains = grains_of(training.network, options.grain)
    if options.fan_in and options.densities:
        raise UserError("sparse.fan_in and sparse.densities", "one of them", "drop one")
    masks = _constant(options, training) if options.fan_in else _by_density(options, training, grains)
    due = due_at(options, training)
    share = cosine_share(options.drop, max(1, int(options.until * training.steps)))
    dense = weights_named(options.dense, shapes_of(training.network))

    @torch.no_grad()
    def after_step(step: int, stepped: bool) -> None:
        if not stepped or not due(step):
            return
        for index, (name, weight) in enumerate(masks.weights.items()):
            if name in dense or weight.grad is None or bool(masks.values[name].all()):
                continue
            size, gain = units(weight, grains[name]), units(weight.grad, grains[name])
            noise = uniform(size.shape, training.seed, index, step).to(size.device) * TIE_NOISE
            lives = alive(masks.values[name], grains[name])
            new = moved(lives, size + noise, gain, share(step), rows=options.fan_in is not None)
            masks.values[name] = spread(new, weight)
        masks.apply()

    return Hooks(masks=masks, after_step=after_step, figures=figures_of(masks))


def grains_of(network: nn.Module, grain: str) -> dict[str, int]:
    """Weights in each unit that lives or dies, layer by layer."""
    return {
        name: shape.numel() // (shape[0] * shape[1]) if grain == "kernel" else 1
        for name, shape in shapes_of(network).items()
    }


def units(tensor: Tensor, grain: int) -> Tensor:
    """Magnitude of each unit: of each weight, or the L2 norm of each kernel (out, in)."""
    return tensor.abs() if grain == 1 else tensor.flatten(2).norm(dim=2)


def alive(mask: Tensor, grain: int) -> Tensor:
    """The mask, unit by unit."""
    return mask if grain == 1 else mask.flatten(2).any(2)


def spread(lives: Tensor, weight: Tensor) -> Tensor:
    """The mask of units over the entries of the weight."""
    if lives.shape == weight.shape:
        return lives
    return lives.reshape(*lives.shape, *(1 for _ in weight.shape[2:])).expand_as(weight).contiguous()


def moved(lives: Tensor, size: Tensor, gain: Tensor, share: float, rows: bool = False) -> Tensor:
    """The mask after `share` of the living units with the smallest `size` died and as many with the largest `gain`, of
    all that do not live then, came to life; with `rows` in each row (output channel) alone."""
    if rows:
        flat = zip(lives.flatten(1), size.flatten(1), gain.flatten(1), strict=True)
        return torch.stack([moved(row, row_size, row_gain, share) for row, row_size, row_gain in flat]).view_as(lives)
    count = int(share * int(lives.sum()))
    keep = largest(size.masked_fill(~lives, -torch.inf), int(lives.sum()) - count)
    return keep | largest(gain.masked_fill(keep, -torch.inf), count)


def _by_density(options: Options, training: Training, grains: dict[str, int]) -> Masks:
    masks = start_masks(options, training)
    for index, (name, weight) in enumerate(in_scope(training.network).items()):
        grain, mask = grains[name], masks.values[name]
        if grain > 1 and not bool(mask.all()):
            places = uniform(weight.shape[:2], training.seed, index)
            count = max(1, round(int(mask.sum()) / grain))
            masks.values[name] = spread(largest(places, count).to(mask.device), weight)
    return masks


def _constant(options: Options, training: Training) -> Masks:
    """Each output channel reads `fan_in` units, at random; layers with fewer, and those in `dense`, are whole."""
    values, shapes = {}, shapes_of(training.network)
    dense = weights_named(options.dense, shapes)
    assert options.fan_in is not None
    for index, (name, weight) in enumerate(in_scope(training.network).items()):
        by_kernel = options.grain == "kernel" and weight.ndim > 2
        places = uniform(weight.shape[:2] if by_kernel else weight.shape, training.seed, index)
        fewest = places[0].numel()
        count = fewest if name in dense else min(options.fan_in, fewest)
        rows = torch.stack([largest(row, count) for row in places.flatten(1)]).view_as(places)
        values[name] = spread(rows.to(weight.device), weight)
    return Masks(values)
