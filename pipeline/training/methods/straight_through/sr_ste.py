"""SR-STE: of every 4 weights along the input channels the 2 largest live (Zhou et al. 2021, arXiv 2102.04010).

The pattern that sparse tensor cores take. Dense weights train on behind the masked ones; those that are masked are
drawn to 0: gradient + `pull` * (1 - mask) * w. Train so on widths that are aligned already: a channel that is removed
afterwards would shift the groups of 4, so the census names none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.section import NonNegative, Section
from pipeline.training.hooks import Dead, Hooks, Training
from pipeline.training.masks import Masks
from pipeline.training.methods.straight_through.dense import Dense
from pipeline.training.methods.weights.layers import figures_of, shapes_of, weights_named
from pipeline.training.state import TrainState
from runtime.errors import UserError

GROUP, LIVING = 4, 2


class Options(Section):
    pull: NonNegative = Field(default=2e-4, description="How strongly masked weights are drawn to 0; the paper's.")
    dense: tuple[str, ...] | None = Field(
        default=None, description="Layers that stay dense, by module name; null: the first and the last."
    )

    @property
    def removes(self) -> bool:
        """A channel that is removed would shift the groups."""
        return False


def sr_ste(options: Options, training: Training) -> Hooks:
    """Raises UserError, by name, where input channels do not divide by 4."""
    names = layers_of(options.dense, shapes_of(training.network))
    dense = Dense(training.network, names, lambda name, weight: largest_of_four(weight))
    anatomy: list[Any] = []

    def begin(state: TrainState) -> None:
        anatomy[:] = [state.anatomy]
        dense.begin(state)

    def gradient(name: str, weight: Tensor, masked: Tensor) -> Tensor:
        return masked + options.pull * weight * ~largest_of_four(weight)

    def after_step(step: int, stepped: bool) -> None:
        if stepped:
            dense.after_step()

    def census() -> Dead:
        return {name: torch.zeros(width, dtype=torch.bool) for name, width in anatomy[0].watch.items()}

    def figures(step: int) -> dict[str, Any]:
        return figures_of(Masks(dense.living()))(step)

    def load(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        dense.restore()

    return Hooks(
        begin=begin, carried={"dense": dense.weights}, after_backward=lambda step: dense.before_step(gradient),
        after_step=after_step, census=census, load=load,
        figures=figures,
    )  # fmt: skip


def layers_of(dense: tuple[str, ...] | None, shapes: dict[str, torch.Size]) -> list[str]:
    """Weights that get the pattern. Raises UserError where a layer is not there, or where the input channels of one
    do not divide by 4."""
    ends = {next(iter(shapes)), list(shapes)[-1]}
    names = [name for name in shapes if name not in (ends if dense is None else weights_named(dense, shapes))]
    if not names:
        raise UserError("no layer is left for 2:4", "layers besides the dense ones", "name fewer in sparse.dense")
    odd = [f"{name.removesuffix('.weight')} ({shapes[name][1]})" for name in names if shapes[name][1] % GROUP]
    if odd:
        raise UserError(
            f"input channels of {', '.join(odd)} do not divide by {GROUP}",
            "groups of 4 input channels for 2:4",
            "align the widths first (surgery.align: 8), or name these layers in sparse.dense",
        )
    return names


def largest_of_four(weight: Tensor) -> Tensor:
    """bool: of every 4 entries along axis 1 the 2 largest in size, of equal ones the first."""
    last = weight.movedim(1, -1)
    groups = last.reshape(*last.shape[:-1], -1, GROUP).abs()
    order = groups.argsort(dim=-1, descending=True, stable=True)[..., :LIVING]
    lives = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order, True)
    return lives.flatten(-2).movedim(-1, 1)
