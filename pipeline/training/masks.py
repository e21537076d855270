"""Masks: which entries of the weights live; the others are 0, and so are their moments in the optimizer.

A pruned entry is held at a physical 0 and not multiplied in the forward pass, so its gradient after a backward pass is
the dense one that growth by gradient needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from pipeline.training.state import TrainState
from runtime.errors import UserError

MASK = "demport_mask"


def in_scope(network: nn.Module, skip: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """Name -> trained weight of each convolution and linear layer, less the names in `skip`; a shared one once. Raises
    UserError where there is none."""
    weights: dict[str, nn.Parameter] = {}
    for path, module in network.named_modules():
        name = f"{path}.weight" if path else "weight"
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear) or name in skip:
            continue
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        if weight.requires_grad and all(weight is not other for other in weights.values()):
            weights[name] = weight
    if not weights:
        raise UserError(
            "the network has no convolution or linear layer that is trained",
            "weights for masks to act on",
            "choose another network or method",
        )
    return weights


class Masks:
    """`values`: parameter name -> bool mask of its shape, True = lives. Filled by the method at the start, sliced with
    the network at a removal, saved and restored with it."""

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self.values: dict[str, Tensor] = dict(values or {})
        self._state: TrainState | None = None

    def bind(self, state: TrainState) -> None:
        """Act on this network and optimizer from now on."""
        self._state = state

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The masked parameters, by name."""
        assert self._state is not None, "bind first"
        named = dict(self._state.network.named_parameters())
        return {name: named[name] for name in self.values}

    @torch.no_grad()
    def apply(self, names: Collection[str] | None = None) -> None:
        """Weights and every moment of the optimizer become 0 where the mask is False."""
        assert self._state is not None, "bind first"
        moments = self._state.optimizer.inner.state
        for name, weight in self.weights.items():
            if names is not None and name not in names:
                continue
            mask = self.values[name]
            tensors = [v for v in moments.get(weight, {}).values() if isinstance(v, Tensor) and v.shape == mask.shape]
            for tensor in (weight, *tensors):
                tensor.mul_(mask)

    def pinned(self) -> dict[str, Tensor]:
        """Parameter name -> entries that are held at 0."""
        return {name: ~mask for name, mask in self.values.items()}

    @property
    def living(self) -> int:
        """How many entries live."""
        return sum(int(mask.sum()) for mask in self.values.values())

    @property
    def size(self) -> int:
        return sum(mask.numel() for mask in self.values.values())

    @property
    def density(self) -> float:
        return self.living / max(1, self.size)

    def drop(self, name: str, scores: Tensor, count: int) -> Tensor:
        """The `count` living entries with the smallest scores die. Returns the mask of those that died."""
        mask = self.values[name]
        count = min(count, int(mask.sum()))
        dead = largest((-scores).masked_fill(~mask, -torch.inf), count)
        self.values[name] = mask & ~dead
        return dead

    def grow(self, name: str, scores: Tensor, count: int, among: Tensor | None = None) -> Tensor:
        """The `count` entries with the largest scores come to life, of those that do not live (`among` them, a bool
        mask, by default all). Returns the mask of those that came. Their weights are what they hold: 0, unless they
        were dropped since the last `apply`."""
        mask = self.values[name]
        free = ~mask if among is None else ~mask & among
        count = min(count, int(free.sum()))
        new = largest(scores.masked_fill(~free, -torch.inf), count)
        self.values[name] = mask | new
        return new


def largest(scores: Tensor, count: int) -> Tensor:
    """bool mask of exactly the `count` largest entries; of equal ones the first."""
    flat = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    order = scores.flatten().argsort(descending=True, stable=True)
    flat[order[:count]] = True
    return flat.view_as(scores)


def uniform_counts(shapes: Mapping[str, torch.Size], density: float, dense: Collection[str] = ()) -> dict[str, int]:
    """Living entries of each layer: the same share in all, those in `dense` whole."""
    return {name: s.numel() if name in dense else max(1, round(density * s.numel())) for name, s in shapes.items()}


def erk_counts(
    shapes: Mapping[str, torch.Size], density: float, dense: Collection[str] = (), kernels: bool = True
) -> dict[str, int]:
    """Living entries of each layer by Erdos-Renyi(-Kernel) densities (arXiv 1911.11134), `density` over all of them.

    The density of a layer is in proportion to (o + i + kh + kw) / (o i kh kw), without kernel sizes where `kernels` is
    False; layers in `dense`, and those that would be denser than 1, are whole. Raises UserError where the dense layers
    alone are more than asked for.
    """

    def sides(shape: torch.Size) -> float:
        """The raw density times the layer's size."""
        return float(sum(shape)) if kernels else float(sum(shape[:2]) * shape[2:].numel())

    sizes = {name: shape.numel() for name, shape in shapes.items()}
    budget, whole = density * sum(sizes.values()), {name for name in shapes if name in dense}
    if sum(sizes[name] for name in whole) > budget + 0.5:
        raise UserError(
            f"a density of {density:g}, and {', '.join(sorted(whole))} alone are more than that",
            "room for the layers that stay dense",
            "raise the density, or make fewer layers dense",
        )
    while others := [name for name in shapes if name not in whole]:
        eps = (budget - sum(sizes[name] for name in whole)) / sum(sides(shapes[name]) for name in others)
        fullest = max(others, key=lambda name: sides(shapes[name]) / sizes[name])
        if eps * sides(shapes[fullest]) <= sizes[fullest]:
            break
        whole.add(fullest)
    return {name: sizes[name] if name in whole else max(1, round(eps * sides(shapes[name]))) for name in shapes}


def cosine_share(start: float, end: int) -> Callable[[int], float]:
    """Share of the living entries to move at a step: `start` / 2 (1 + cos(pi step / end)), 0 from `end` on."""

    def share(step: int) -> float:
        return 0.0 if step >= end else start / 2 * (1 + math.cos(math.pi * step / end))

    return share
