"""DepGraph: group sparsity over all that is tied to a channel, then a cut by norm (Fang et al. 2023, arXiv 2301.12900).

I_k is the L2 norm over all parameters of channel k: rows that make it, entries of norms and biases, columns that read
it. Up to `target.reached_at` strength * 2^(4 (max I - I_k) / (max I - min I)) * w joins the gradient of each of them,
max and min being of the group; then the channels of the smallest I_k, over the mean of their group, go.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.channels import Ranked
from pipeline.config.section import NonNegative
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.methods.channels.magnitude import relative, squares
from pipeline.training.steering.channels import Channels, index_of, numbers

STEEPNESS = 4.0


class Options(Ranked):
    strength: NonNegative = Field(default=5e-4, description="Of the regulariser; Torch-Pruning's is 5e-4.")


def group_norm(options: Options, training: Training) -> Hooks:
    """Raises UserError where the target is out of reach."""
    cutting = Cutting(options, training)

    def after_backward(step: int) -> None:
        if step < cutting.ends[-1]:
            shrink_weak(cutting.channels, options.strength)

    def score(step: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return relative(numbers(tied_norms(cutting.channels)), cutting.channels)

    return cutting.hooks(score, after_backward=after_backward)


def tied_norms(channels: Channels) -> Tensor:
    """(count,): I_k."""
    return channels.total(channels.own + channels.readers, squares).sqrt()


@torch.no_grad()
def shrink_weak(channels: Channels, strength: float) -> None:
    """Adds the regulariser's gradient."""
    norms = tied_norms(channels)
    weights = torch.zeros_like(norms)
    for group in channels.costs.groups:
        classes = torch.as_tensor(np.unique(group.classes), device=norms.device)
        own = norms[classes]
        spread = (own.max() - own.min()).clamp_min(1e-12)
        weights[classes] = strength * 2.0 ** (STEEPNESS * (own.max() - own) / spread)
    for part in channels.own + channels.readers:
        if part.tensor.grad is not None:
            rows = weights[index_of(part).to(norms.device)].to(part.tensor.device, part.tensor.dtype)
            part.tensor.grad.addcmul_(part.spread(rows), part.tensor)
