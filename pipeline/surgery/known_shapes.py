"""Shapes of the commonest calls, worked out: a call on meta tensors takes fifty times as long.

A rule answers where its inputs are plain: contiguous, and of one dtype. None leaves the answer to the call itself, its
errors too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)  # the latter makes attention's output
Shape = Sequence[int]
OfModule = Callable[[Any, Tensor], Shape | None]
OfFunction = Callable[[Sequence[Any], Mapping[str, Any]], Shape | None]


def convolution(module: Any, x: Tensor) -> Shape | None:
    """(N, C, *size) -> (N, O, *positions of the kernel)"""
    kernel, weight = module.kernel_size, module._parameters.get("weight")
    plain = type(module.padding) is tuple and module.padding_mode == "zeros" and x.is_contiguous()
    if weight is None or not plain or x.dtype != weight.dtype or x.dim() != len(kernel) + 2:
        return None
    steps = zip(x.shape[2:], kernel, module.stride, module.padding, module.dilation, strict=True)
    sizes = [(size + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, pad, dilation in steps]
    fits = x.shape[1] == weight.shape[1] * module.groups and weight.shape[2:] == kernel and min(sizes) > 0
    return (x.shape[0], weight.shape[0], *sizes) if fits else None


def linear(module: Any, x: Tensor) -> Shape | None:
    """(..., I) -> (..., O)"""
    weight = module._parameters.get("weight")
    fits = weight is not None and x.dim() > 1 and x.shape[-1] == weight.shape[1] and x.dtype == weight.dtype
    return (*x.shape[:-1], weight.shape[0]) if fits else None


def average_to_size(module: Any, x: Tensor) -> Shape | None:
    """(N, C, H, W) -> (N, C, *output_size)"""
    size = module.output_size
    sizes = (size, size) if type(size) is int else size
    plain = type(sizes) is tuple and len(sizes) == 2 and all(type(n) is int and n > 0 for n in sizes)
    return (*x.shape[:2], *sizes) if plain and x.dim() == 4 and x.is_contiguous() and 0 not in x.shape[1:] else None


def elementwise(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """A floating-point tensor with a number, or with another that has its shape or is spread over it."""
    if len(args) == 2 and isinstance(args[1], Tensor) and isinstance(args[0], Tensor):
        wide = args[0].numel() >= args[1].numel()
        return overwriting(args if wide else args[::-1], kwargs)
    return overwriting(args, kwargs)


def overwriting(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """The same where the result has the shape of the first."""
    if kwargs or len(args) != 2 or not isinstance(args[0], Tensor):
        return None
    x, y = args
    if not x.is_floating_point() or not x.is_contiguous():
        return None
    if not isinstance(y, Tensor):
        return x.shape if type(y) in (int, float) else None
    if x.dtype != y.dtype or not y.is_contiguous() or y.dim() != x.dim():
        return None
    return x.shape if all(n in (m, 1) for m, n in zip(x.shape, y.shape, strict=True)) else None


def activation(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """Of one floating-point tensor, nothing beside it but a keyword or a flag."""
    x = args[0] if args else None
    plain = isinstance(x, Tensor) and x.is_floating_point() and x.is_contiguous()
    return x.shape if plain and not any(isinstance(v, Tensor) for v in (*args[1:], *kwargs.values())) else None  # type: ignore[union-attr]


def layer_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """Over the last axes, with a weight and a bias of their shape."""
    given = {**dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)), **kwargs}
    x, over = given.get("input"), tuple(given.get("normalized_shape", ()))
    if not isinstance(x, Tensor) or not x.is_floating_point() or not 0 < len(over) < x.dim():
        return None
    affine = [given.get("weight"), given.get("bias")]
    same = all(isinstance(p, Tensor) and tuple(p.shape) == over and p.dtype == x.dtype for p in affine)
    return x.shape if same and tuple(x.shape[-len(over) :]) == over else None


def linear_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """(..., I), (O, I) and maybe (O,) -> (..., O)"""
    if kwargs or not 2 <= len(args) <= 3 or not all(isinstance(a, Tensor) for a in args[:2]):
        return None
    x, weight, bias = (*args, None)[:3]
    if weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1] or x.dtype != weight.dtype:
        return None
    fits = bias is None or (isinstance(bias, Tensor) and bias.shape == weight.shape[:1] and bias.dtype == x.dtype)
    return (*x.shape[:-1], weight.shape[0]) if fits else None


def concatenation(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """Along an axis given by number; the other sizes agree."""
    given = {**dict(zip(("tensors", "dim"), args, strict=False)), **kwargs}
    parts, axis = given.pop("tensors", None), given.pop("dim", 0)
    if given or len(args) > 2 or type(axis) is not int or not isinstance(parts, list | tuple) or not parts:
        return None
    first = parts[0]
    if not isinstance(first, Tensor) or not -first.dim() <= axis < first.dim():
        return None
    axis %= first.dim()
    rest = (*first.shape[:axis], *first.shape[axis + 1 :])
    for x in parts:
        if not isinstance(x, Tensor) or x.dtype != first.dtype or not x.is_contiguous() or x.dim() != first.dim():
            return None
        if (*x.shape[:axis], *x.shape[axis + 1 :]) != rest:
            return None
    return (*first.shape[:axis], sum(x.shape[axis] for x in parts), *first.shape[axis + 1 :])


MODULES: dict[type[nn.Module], OfModule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution),
    **dict.fromkeys(LINEAR, linear),
    nn.AdaptiveAvgPool2d: average_to_size,
}
FUNCTIONS: dict[Callable[..., Any], OfFunction] = {
    **dict.fromkeys((operator.add, operator.mul, torch.add, torch.mul), elementwise),
    **dict.fromkeys((operator.iadd, operator.imul), overwriting),
    **dict.fromkeys((F.relu, F.relu6, F.silu, F.gelu, F.hardswish, torch.relu, torch.sigmoid), activation),
    **dict.fromkeys((torch.cat, torch.concat), concatenation),
    F.layer_norm: layer_norm,
    F.linear: linear_call,
}
