"""What methods with masks share: their layers, the first masks, the moments of a change, figures for the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.options.masks import Masked, Rewired
from pipeline.training.compute.device import derived_seed
from pipeline.training.hooks import Training
from pipeline.training.masks import Masks, erk_counts, in_scope, largest, uniform_counts
from runtime.errors import UserError

MOST_LAYERS = 100_000  # of a network: numbers of draws are of a step and a layer


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    """Name -> shape of each weight in scope. Raises UserError where there is none."""
    return {name: weight.shape for name, weight in in_scope(network).items()}


def counts_of(options: Masked, network: nn.Module) -> dict[str, int]:
    """Living entries of each layer by `densities`, `density`, `distribution` and `dense`. Raises UserError where a
    layer that is named is not there, or where the density leaves less than one weight a layer."""
    every = shapes_of(network)
    own = {weights_named([layer], every, "densities").pop(): density for layer, density in options.densities.items()}
    alone = {name: max(1, round(density * every[name].numel())) for name, density in own.items()}
    shapes = {name: shape for name, shape in every.items() if name not in alone}
    counts = alone | (_shared(options, shapes) if shapes else {})
    return {name: counts[name] for name in every}


def _shared(options: Masked, shapes: dict[str, torch.Size]) -> dict[str, int]:
    """The same of layers without a density of their own."""
    dense = weights_named(options.dense, shapes)
    size = sum(shape.numel() for shape in shapes.values())
    if options.density * size < len(shapes):
        raise UserError(
            f"sparse.density {options.density:g} of {size:,} weights is less than one weight for each of the "
            f"{len(shapes)} layers",
            f"at least {len(shapes) / size:.2g}",
            "raise sparse.density",
        )
    if options.distribution == "uniform":
        return uniform_counts(shapes, options.density, dense)
    return erk_counts(shapes, options.density, dense, kernels=options.distribution == "erk")


def weights_named(layers: Iterable[str], shapes: dict[str, torch.Size], key: str = "dense") -> set[str]:
    """The weights of these modules. Raises UserError where one is none of those in scope."""
    names = set()
    for layer in layers:
        name = layer if layer in shapes else f"{layer}.weight"
        if name not in shapes:
            layers_there = ", ".join(weight.removesuffix(".weight") for weight in shapes)
            raise UserError(
                f"sparse.{key} names {layer}", f"convolutions and linear layers: {layers_there}", "name some of these"
            )
        names.add(name)
    return names


def uniform(shape: torch.Size, seed: int, layer: int, step: int = -1) -> Tensor:
    """float32 in [0, 1) that follow from seed, layer and step, the same on every device; step -1: before the first."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "masks", (step + 1) * MOST_LAYERS + layer))
    return torch.rand(shape, generator=generator)


def start_masks(options: Masked, training: Training) -> Masks:
    """Random masks with the counts that the options ask for."""
    shapes, counts = shapes_of(training.network), counts_of(options, training.network)
    device = training.example[0].device
    return Masks({
        name: largest(uniform(shapes[name], training.seed, index), count).to(device)
        for index, (name, count) in enumerate(counts.items())
    })  # fmt: skip


def due_at(options: Rewired, training: Training) -> Callable[[int], bool]:
    """Whether the masks change after a step: every so many steps, before `until`, not after the last."""
    every = training.steps_per_epoch if options.every == "epoch" else options.every
    end = int(options.until * training.steps)
    return lambda step: (step + 1) % every == 0 and step + 1 <= end and step + 1 < training.steps


def figures_of(masks: Masks) -> Callable[[int], dict[str, Any]]:
    """Columns of the history: `density` of the masked weights, in all and by layer, and how many live."""

    def figures(step: int) -> dict[str, Any]:
        layers = {name.removesuffix(".weight"): mask for name, mask in masks.values.items()}
        return {
            "density": masks.density,
            "living_weights": masks.living,
            "density_by_layer": {name: float(mask.float().mean()) for name, mask in layers.items()},
        }

    return figures
