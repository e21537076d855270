"""Rounding to the whole numbers of a pair, with a gradient for what is rounded and for the scale.

The gradient passes rounding as if it were not there, and ends where values are beyond the last number; that of the
scale is LSQ's (Esser et al., arXiv 1902.08153). The parameter is the scale's logarithm (TQT: Jain et al., arXiv
1903.08066), so that a scale stays positive and a step changes it by a share of itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Rounding(nn.Module):
    """`scale`: float32, one, or one for each index of `axis`; `zero_point` stands for 0. Gives float32."""

    def __init__(self, scale: Tensor, zero_point: int, low: int, high: int, axis: int | None = None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(scale.detach().clone().float().log())
        self.zero_point, self.low, self.high, self.axis = zero_point, low, high, axis

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        if self.axis is not None:
            scale = scale.reshape([-1 if axis == self.axis else 1 for axis in range(x.dim())])
        # float32 also under autocast: bfloat16 has not the digits of 255 steps
        rounded: Tensor = _Round.apply(x.float(), scale, self.zero_point, self.low, self.high)
        return rounded


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
        exact = x / scale
        whole = exact.round()  # half to even, as QuantizeLinear
        level = whole.clamp(low - zero_point, high - zero_point)
        inside = level == whole
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(inside, torch.where(inside, level - exact, level), scale)
        else:
            ctx.save_for_backward(inside)
        ctx.high = high - zero_point
        return level * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inside, *more = ctx.saved_tensors
        of_scale = None
        if more:
            per_level, scale = more
            of_scale = (gradient * per_level).sum_to_size(scale.shape)
            # LSQ's factor, without which SGD would move a scale by the sum over all that it rounds
            of_scale = of_scale * (scale.numel() / (gradient.numel() * ctx.high)) ** 0.5
        return gradient * inside, of_scale, None, None, None


class RoundedLayer(nn.Module):
    """A layer whose weight is rounded before it is used."""

    def __init__(self, layer: nn.Module, rounding: Rounding) -> None:
        super().__init__()
        self.layer, self.rounding = layer, rounding

    def forward(self, x: Tensor) -> Any:
        return torch.func.functional_call(self.layer, {"weight": self.rounding(self.layer.weight)}, (x,))
