"""Gaussian noise on live channels, drawn for all parameters at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Noise:
    """Of all trained parameters of a model, in the order of their names."""

    def __init__(self, model: nn.Module) -> None:
        named = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
        self._names = [name for name, _ in named]
        self._parameters: list[Tensor] = [p for _, p in named]
        device = self._parameters[0].device
        self._generator = torch.Generator(device)
        self._flat = torch.empty(sum(p.numel() for p in self._parameters), device=device)
        self._dead = torch.zeros_like(self._flat, dtype=torch.bool)
        self._noise, self._dead_parts = self._views(self._flat), self._views(self._dead)
        self._any_dead = False

    def spare(self, live: Mapping[str, Tensor]) -> None:
        """From now on no noise where `live` (parameter name -> mask that broadcasts to it) is 0."""
        for name, mask, parameter in zip(self._names, self._dead_parts, self._parameters, strict=True):
            mask.copy_((live[name] == 0).expand_as(parameter) if name in live else torch.zeros_like(mask))
        self._any_dead = bool(self._dead.any())

    @torch.no_grad()
    def add(self, sigma: float, seed: int) -> None:
        if not sigma:
            return
        self._flat.normal_(generator=self._generator.manual_seed(seed))
        if self._any_dead:
            self._flat.masked_fill_(self._dead, -0.0)  # what may be added without changing a bit, not even of -0.0
        torch._foreach_add_(self._parameters, self._noise, alpha=sigma)

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [p.numel() for p in self._parameters])
        return [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]
