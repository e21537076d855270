"""Channels that the loss would miss least, to first order (Molchanov et al. 2019, arXiv 1906.10771).

A channel matters as much as (sum over its own parameters of w dL/dw)^2, averaged over the steps since the last removal,
with the gradients of the training itself; for a channel of a residual stream the sum goes over all layers that make it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from pipeline.config.options.channels import Ranked
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.state import TrainState
from pipeline.training.steering.channels import Means


class Options(Ranked):
    rounds: Positive = Field(default=8, description="Selections, evenly spaced, on a geometric way to the target.")


def taylor(options: Options, training: Training) -> Hooks:
    """Works in a loop of one's own too. Raises UserError where the target is out of reach."""
    cutting, means = Cutting(options, training), Means()

    def begin(state: TrainState) -> None:
        means.clear()
        cutting.begin(state)

    def after_backward(step: int) -> None:
        if step < cutting.picks[-1]:
            means.add(first=cutting.channels.total(cutting.channels.own, first_order) ** 2)

    def load(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        cutting.read()
        means.load(tensors, document, cutting.channels)

    return cutting.hooks(
        lambda step: means.mean("first", cutting.channels.costs.count),
        begin=begin,
        after_backward=after_backward,
        state=lambda: means.saved(cutting.channels),
        load=load,
    )


def first_order(parameter: Tensor) -> Tensor | None:
    """w dL/dw of each entry; None without a gradient."""
    return None if parameter.grad is None else parameter.detach() * parameter.grad
