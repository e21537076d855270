"""A layer's parameters by name, and what its weights let through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

FEW_ROWS = 4
CACHE_BYTES = 1 << 19  # of a weight are read at once


@dataclass(frozen=True)
class Weights:
    """A layer's parameters by name: weight (out, in / groups, *kernel) when `out_axis` is 0, the two swapped when 1."""

    name: str
    weight: str
    bias: str | None
    out_axis: int = 0
    groups: int = 1
    padded: bool = False  # zero padding lets a border see fewer channels: only zeros fold
    computed: fx.Node | None = None  # a bias that is no parameter, but computed from some

    @property
    def in_axis(self) -> int:
        return 1 - self.out_axis


def summed(weight: Tensor, w: Weights) -> Tensor:
    """Sums over the kernel, float64 (out, in / groups)."""
    flat = weight.detach().to(torch.float64)
    flat = flat.flatten(2).sum(2) if flat.dim() > 2 else flat
    return flat if w.out_axis == 0 else flat.t()


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The tensor's own memory where it lies on the CPU and NumPy has its type.

    Large weights are read through NumPy, in one thread: a reading is over before threads that are busy elsewhere come.
    """
    values = tensor.detach()
    if values.device.type != "cpu":
        values = values.cpu()
    return np.asarray((values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy())


def rows_of(weight: Tensor, w: Weights) -> NDArray[Any]:
    """The weight as (out, in / groups, taps)."""
    values = array_of(weight)
    if w.out_axis == 1:
        values = np.concatenate(np.split(values.swapaxes(0, 1), w.groups, 1))
    return values.reshape(*values.shape[:2], -1)


def not_zero(rows: NDArray[Any], which: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each of `which` of the rows (out, in, taps), whether any entry is not zero."""
    flat, nonzero = rows.reshape(len(rows), -1), np.zeros(len(which), bool)
    at_once = max(1, CACHE_BYTES // max(1, flat[:1].nbytes))
    for i in range(0, len(which), at_once):
        nonzero[i : i + at_once] = _any_not_zero(flat.take(which[i : i + at_once], 0))
    return nonzero


def _any_not_zero(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Per row. Bits of floating-point numbers, but for the sign, are joined, which takes a third of the time."""
    if rows.dtype not in (np.float32, np.float64):
        return np.asarray(rows.any(1), bool)
    bits = rows.view(np.uint32 if rows.dtype == np.float32 else np.uint64)
    nonzero: NDArray[np.bool_] = np.asarray(np.bitwise_or.reduce(bits, axis=1) << 1) != 0
    return nonzero


def unread(weight: Tensor, in_axis: int) -> NDArray[np.bool_]:
    """Which inputs no output reads: all their weights are zero. A few rows tell it of most."""
    values = array_of(weight).swapaxes(0, 1 - in_axis)  # (out, in, ...)
    few = values[:FEW_ROWS].reshape(min(FEW_ROWS, len(values)), values.shape[1], -1)
    zero: NDArray[np.bool_] = np.logical_not(few.any((0, 2)))
    which = np.flatnonzero(zero)
    if len(which):
        zero[which] = np.logical_not(values.take(which, 1).reshape(len(values), len(which), -1).any((0, 2)))
    return zero


def prod_out(weight: Tensor, w: Weights) -> int:
    """Output channels of a layer."""
    return weight.shape[w.out_axis] * (w.groups if w.out_axis == 1 else 1)


def pads(padding: Any, mode: str = "zeros") -> bool:
    if mode != "zeros" or padding == "valid":
        return False
    return padding == "same" or (any(padding) if isinstance(padding, tuple | list) else padding != 0)
