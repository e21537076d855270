"""Channels with the smallest weights go (Li et al. 2017, arXiv 1608.08710: the L1 norm of a filter, layer by layer)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from pipeline.config.options.channels import Ranked
from pipeline.surgery.channels.ledger import Floats
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.steering.channels import Channels, numbers


class Options(Ranked):
    norm: Literal["l1", "l2"] = Field(default="l1", description="Of the weights that make a channel.")
    scope: Literal["global", "group"] = Field(
        default="group",
        description="group: each group of channels gives up the same share, as in the paper; global: norms, divided by "
        "the mean of their group, compete.",
    )


def magnitude(options: Options, training: Training) -> Hooks:
    """Raises UserError where the target is out of reach."""
    cutting = Cutting(options, training)
    return cutting.hooks(lambda step: relative(norms(cutting.channels, options.norm), cutting.channels))


def norms(channels: Channels, norm: str = "l1") -> Floats:
    """(count,): of the weights that make each class, over all layers of its group."""
    if norm == "l1":
        return numbers(channels.total(channels.makers, lambda p: p.abs()))
    return np.sqrt(numbers(channels.total(channels.makers, squares)))


def squares(parameter: Tensor) -> Tensor:
    return parameter.detach() ** 2


def relative(scores: Floats, channels: Channels) -> Floats:
    """Scores over the mean of their group: layers of other fan-in become comparable."""
    result = scores.copy()
    for group in channels.costs.groups:
        classes = np.unique(group.classes)
        result[classes] /= max(float(scores[classes].mean()), 1e-30)
    return result
