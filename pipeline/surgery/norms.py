"""Normalisations over channels of which some zero ones were removed: the statistics still count them."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm_over_kept(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dims: int, full: int
) -> Tensor:
    """Layer norm over the last `dims` axes as if there were `full` elements, those missing being zero.

    With mean m = sum(x) / full, the variance is (sum((x - m)^2) + missing * m^2) / full.
    """
    axes = tuple(range(-dims, 0))
    count = 1
    for axis in axes:
        count = count * x.shape[axis]
    mean = x.sum(axes, keepdim=True) / full
    centred = x - mean
    variance = (centred.square().sum(axes, keepdim=True) + (full - count) * mean.square()) / full
    out = centred * torch.rsqrt(variance + eps)
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def mean_over_kept(x: Tensor, dims: list[int], keepdim: bool, share: float) -> Tensor:
    """The mean over `dims` as if there were 1 / share times as many elements, those missing being zero."""
    return x.mean(dims, keepdim=keepdim) * share


def group_norm_over_kept(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, full: int
) -> Tensor:
    """Group norm of x (N, C, ...) in which each group had `full` channels, those missing being zero."""
    split = torch.unflatten(x, 1, (groups, -1)).flatten(2)
    present = x.shape[1] // groups
    scale = full / present  # elements a group had over elements it has
    mean = split.mean(2, keepdim=True) / scale
    centred = split - mean
    variance = (centred.square().mean(2, keepdim=True) + (scale - 1) * mean.square()) / scale
    out = (centred * torch.rsqrt(variance + eps)).flatten(1, 2).reshape(x.shape)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    if weight is not None:
        out = out * weight.reshape(shape)
    return out if bias is None else torch.add(out, bias.reshape(shape))
