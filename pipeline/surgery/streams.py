"""Residual streams whose blocks keep widths of their own: sums over selected channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def select_channels(x: Tensor, axis: int, index: Sequence[int]) -> Tensor:
    """Channels `index` of x along `axis`; where an index is -1, a channel of zeros."""
    if min(index) < 0:
        x = torch.cat([x, torch.zeros_like(x.narrow(axis, 0, 1))], dim=axis)
        index = [i if i >= 0 else x.shape[axis] - 1 for i in index]
    return x.index_select(axis, torch.tensor(index, device=x.device))
