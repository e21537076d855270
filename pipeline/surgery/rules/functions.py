"""Functions that a compact network calls: statistics that still count removed channels, and selections of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx

Function = TypeVar("Function", bound=Callable[..., Any])


def one_call(function: Function) -> Function:
    """Traced again, a compact network calls the function itself, for which there is a rule, not what it is made of."""

    @wraps(function)
    def call(x: Any, *args: Any) -> Any:
        if isinstance(x, fx.Proxy):
            return x.tracer.create_proxy("call_function", call, (x, *args), {})
        return function(x, *args)

    return cast(Function, call)


@one_call
def layer_norm_with_removed(
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


@one_call
def rms_norm_with_removed(x: Tensor, weight: Tensor | None, eps: float | None, dims: int, full: int) -> Tensor:
    """Root-mean-square norm over the last `dims` axes as if there were `full` elements, those missing being zero."""
    shape = x.shape[-dims:]
    share = math.sqrt(math.prod(shape) / full)
    out = torch.nn.functional.rms_norm(x * share, tuple(shape), None, eps) / share
    return out if weight is None else out * weight


def mean_with_removed(x: Tensor, dims: list[int], keepdim: bool, share: float) -> Tensor:
    """The mean over `dims` as if there were 1 / share times as many elements, those missing being zero."""
    return x.mean(dims, keepdim=keepdim) * share


def spread_with_removed(square: Tensor, middle: Tensor, dims: list[int], keepdim: bool, share: float) -> Tensor:
    """The mean over `dims` of square = (x - middle)^2 as if x had 1 / share times as many elements, those missing being
    zero; `middle` has size 1 along `dims`."""
    out = square.mean(dims, keepdim=True) * share + middle.square() * (1 - share)
    return out if keepdim else out.squeeze(dims)


def variance_with_removed(
    x: Tensor, dims: list[int], keepdim: bool, share: float, correction: float, root: bool
) -> Tensor:
    """The variance over `dims`, or its root, as if there were 1 / share times as many elements, those missing being
    zero."""
    middle = x.mean(dims, keepdim=True) * share
    out = spread_with_removed((x - middle).square(), middle, dims, keepdim, share)
    if correction:
        count = 1.0 / share
        for axis in dims:
            count = count * x.shape[axis]
        out = out * (count / (count - correction))
    return out.sqrt() if root else out


@one_call
def group_norm_with_removed(
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


@one_call
def with_ones(x: Tensor) -> Tensor:
    """x (N, C, ...) and behind it a channel of ones: what constants are to a layer with zero padding."""
    return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, 1), value=1.0)


@one_call
def select_channels(x: Tensor, axis: int, index: Sequence[int]) -> Tensor:
    """Channels `index` of x along `axis`; where an index is -1, a channel of zeros."""
    if min(index) < 0:
        x = torch.cat([x, torch.zeros_like(x.narrow(axis, 0, 1))], dim=axis)
        index = [i if i >= 0 else x.shape[axis] - 1 for i in index]
    return x.index_select(axis, torch.tensor(index, device=x.device))
