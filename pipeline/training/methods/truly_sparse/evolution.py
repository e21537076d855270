"""How connections move: those closest to 0 to random places, and units with weak inputs give theirs up."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.training.masks import largest
from pipeline.training.methods.truly_sparse.connections import SparseLinear, free_places
from pipeline.training.methods.weights.set import nearest_zero


@torch.no_grad()
def evolve(layer: SparseLinear, share: float, moments: Iterable[Tensor], generator: torch.Generator) -> None:
    """`share` of the positive connections closest to 0, and of the others, goes to places that are free at random, with
    weights in +-sqrt(6 / inputs); `moments`, of the shape of the values, are 0 there."""
    living, keys = layer.living, layer.keys
    values = layer.values[:living]
    stay = ~nearest_zero(values, torch.ones_like(values, dtype=torch.bool), share)
    size, count = layer.in_features * layer.out_features, int((~stay).sum())
    new = free_places(keys.cpu(), size, count, generator, layer.closed, layer.in_features)
    limit = (6 / layer.in_features) ** 0.5
    fresh = (2 * torch.rand(len(new), generator=generator) - 1) * limit
    rearrange(layer, stay, moments, new.to(keys.device), fresh.to(keys.device))


@torch.no_grad()
def give_up(layer: SparseLinear, share: float, moments: Iterable[Tensor]) -> int:
    """The `share` of the units that have inputs, those of the smallest sum of |w|, lose them for good; one stays.
    Returns how many lost theirs."""
    keys = layer.keys
    outputs = keys // layer.in_features
    strength = torch.zeros(layer.out_features, device=keys.device)
    strength.index_add_(0, outputs, layer.values[: layer.living].abs())
    held = torch.bincount(outputs, minlength=layer.out_features) > 0
    count = min(int(share * int(held.sum())), int(held.sum()) - 1)
    weakest = largest((-strength).masked_fill(~held, -torch.inf), max(0, count))
    layer.closed |= weakest
    nothing = keys.new_zeros(0)
    rearrange(layer, ~weakest[outputs], moments, nothing, layer.values.new_zeros(0))
    return int(weakest.sum())


@torch.no_grad()
def rearrange(layer: SparseLinear, stay: Tensor, moments: Iterable[Tensor], new: Tensor, values: Tensor) -> None:
    """Connections that `stay` (living,) and the `new` keys with their `values`, in order; the rest of the room is 0."""
    living = layer.living
    keys = torch.cat([layer.keys[stay], new])
    order = keys.argsort()
    for tensor, fresh in ((layer.values, values), *((moment, torch.zeros_like(values)) for moment in moments)):
        ordered = torch.cat([tensor[:living][stay], fresh.to(tensor.dtype)])[order]
        tensor.zero_()
        tensor[: len(keys)] = ordered
    layer.place(keys[order])
