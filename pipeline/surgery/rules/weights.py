"""A layer's parameters by name, and what its weights let through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """A layer's parameters by name: weight (out, in / groups, *kernel) when `out_axis` is 0, the two swapped when 1."""

    name: str
    weight: str
    bias: str | None
    out_axis: int = 0
    groups: int = 1
    padded: bool = False  # zero padding lets a border see fewer channels: only zeros fold

    @property
    def in_axis(self) -> int:
        return 1 - self.out_axis


def summed(weight: Tensor, w: Weights) -> Tensor:
    """Sums over the kernel, float64 (out, in / groups)."""
    flat = weight.detach().to(torch.float64)
    flat = flat.flatten(2).sum(2) if flat.dim() > 2 else flat
    return flat if w.out_axis == 0 else flat.t()


def rows_of(weight: Tensor, w: Weights) -> Tensor:
    """The weight as (out, in / groups, taps)."""
    weight = weight.detach()
    if w.out_axis == 1:
        weight = weight.transpose(0, 1)
        weight = torch.cat(weight.chunk(w.groups, 1)) if w.groups > 1 else weight
    return weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)


def reaches(weight: Tensor, w: Weights) -> Tensor:
    """Whether any tap of the kernel is non-zero, (out, in / groups)."""
    flat = weight.detach()
    taps = flat.flatten(2).ne(0).any(2) if flat.dim() > 2 else flat.ne(0)
    return taps if w.out_axis == 0 else taps.t()


def all_zero(rows: Tensor) -> Tensor:
    """Whether each rows[i] is zero throughout; only rows that start with a zero are read to the end."""
    still = rows[(slice(None),) + (0,) * (rows.dim() - 1)] == 0
    if still.any():
        still[still.clone()] = ~rows[still].flatten(1).ne(0).any(1)
    return still


def prod_out(weight: Tensor, w: Weights) -> int:
    """Output channels of a layer."""
    return weight.shape[w.out_axis] * (w.groups if w.out_axis == 1 else 1)


def pads(padding: Any, mode: str = "zeros") -> bool:
    if mode != "zeros" or padding == "valid":
        return False
    return padding == "same" or bool(np.any(np.asarray(padding) != 0))
