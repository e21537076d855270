"""DyReLU-B (Chen et al. 2020, arXiv 2003.10027): a ReLU whose two slopes and shifts of a channel follow from its image;
phased into a plain ReLU by `beta`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SQUEEZE, LINES = 4, 2


class DyReLU(nn.Module):
    """(N, C) or (N, C, H, W): max over j of a_j x + b_j; with beta 0 it is ReLU."""

    beta: Tensor
    spread: Tensor
    centre: Tensor

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        middle = max(1, channels // SQUEEZE)
        self.squeeze, self.excite = nn.Linear(channels, middle), nn.Linear(middle, 2 * LINES * channels)
        with torch.no_grad():
            for layer in (self.squeeze, self.excite):
                limit = layer.in_features**-0.5
                for p in (layer.weight, layer.bias):
                    p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) * limit)
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("spread", torch.tensor([1.0, 1.0, 0.5, 0.5]), persistent=False)
        self.register_buffer("centre", torch.tensor([1.0, 0.0, 0.0, 0.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x if x.dim() == 2 else x.mean((2, 3))
        theta = 2 * torch.sigmoid(self.excite(torch.relu(self.squeeze(mean)))) - 1
        numbers = self.centre + self.beta * self.spread * theta.view(len(x), -1, 2 * LINES)  # (N, C, 4)
        numbers = numbers.view(*numbers.shape[:2], *[1] * (x.dim() - 2), 2 * LINES)
        first, second, shift, other = numbers.unbind(-1)
        return torch.maximum(first * x + shift, second * x + other)


@torch.no_grad()
def channels_of_relus(network: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Path of each `nn.ReLU` that is called once, on (N, C) or (N, C, H, W) -> C."""
    shapes: dict[str, list[torch.Size]] = {}

    def look(path: str, relu: nn.Module, arguments: tuple[Any, ...]) -> None:
        shapes.setdefault(path, []).append(arguments[0].shape)

    relus = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.ReLU)]
    handles = [m.register_forward_pre_hook(partial(look, path)) for path, m in relus]
    mode = {module: module.training for module in network.modules()}
    network.eval()
    try:
        network(*example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in mode.items():
            module.training = training
    return {path: int(seen[0][1]) for path, seen in shapes.items() if len(seen) == 1 and len(seen[0]) in (2, 4)}
