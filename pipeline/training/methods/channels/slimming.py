"""Network Slimming: an L1 penalty on batch norm scales, then one threshold for all (Liu et al. 2017, arXiv 1708.06519).

The penalty acts up to `target.reached_at`; then the channels of the smallest |gamma| go until the target is met, and
the rest of the training mends what is left. Of channels that go together the mean |gamma| counts.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.channels import Ranked
from pipeline.config.section import NonNegative
from pipeline.surgery.channels.ledger import Floats
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.steering.channels import Channels, numbers
from pipeline.training.steering.demands import batch_norm_scales


class Options(Ranked):
    strength: NonNegative = Field(default=1e-4, description="Weight of the penalty; the paper's is 1e-4 or 1e-5.")


def slimming(options: Options, training: Training) -> Hooks:
    """Raises UserError where there is no trained scale, or where the target is out of reach with those there are."""
    batch_norm_scales(training.network)
    cutting = Cutting(options, training, eligible=lambda channels: channels.count_of(channels.scales) > 0)

    def penalty(step: int) -> Tensor | None:
        if step >= cutting.ends[-1] or not options.strength:
            return None
        scales: list[Tensor] = [part.tensor for part in cutting.channels.scales]
        return options.strength * torch.cat(scales).abs().sum()

    return cutting.hooks(lambda step: mean_scales(cutting.channels), penalty=penalty)


def mean_scales(channels: Channels) -> Floats:
    """(count,): mean |gamma| of each class."""
    sums = numbers(channels.total(channels.scales, torch.abs))
    return sums / np.maximum(channels.count_of(channels.scales), 1)
