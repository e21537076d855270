"""Random masks that stay: the control of every method that chooses its own (Liu et al. 2022, arXiv 2202.02643)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.options.masks import Masked, Scored
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.weights.layers import figures_of, start_masks


class Options(Scored):
    dense: tuple[str, ...] = Field(default=(), description="Layers that stay dense, by module name, e.g. [fc].")


def static_erk(options: Options, training: Training) -> Hooks:
    """Small layers are denser. Raises UserError where the density cannot be met."""
    return _static(options, training, "erk")


def static_uniform(options: Options, training: Training) -> Hooks:
    """The same share in each layer. Raises UserError where the density cannot be met."""
    return _static(options, training, "uniform")


def _static(options: Options, training: Training, distribution: Literal["erk", "uniform"]) -> Hooks:
    asked = Masked(density=options.density, dense=options.dense, distribution=distribution)
    masks = start_masks(asked, training)
    return Hooks(masks=masks, figures=figures_of(masks))
