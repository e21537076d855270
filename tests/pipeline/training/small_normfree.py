"""Small networks for (N, 1, 8, 8) whose channels no batch norm ends, or not all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A transformer's block of 4 heads of 4 dimensions on a stream of 16, with 32 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).reshape(x.shape[0], -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """Patches of 2 x 2, two blocks; positions are learnt where `positions` says so, and then the stream stays."""

    def __init__(self, num_classes: int = 10, positions: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, 2)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 16, 16)) if positions else None
        self.blocks, self.norm, self.head = (
            nn.Sequential(Block(), Block()),
            nn.LayerNorm(16),
            nn.Linear(16, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.positions is None else x + self.positions
        y: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return y


def transformer(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return Transformer(num_classes)


def group_normed(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.GELU(),
        nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.GroupNorm(1, 16), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip


def mixed(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """A batch norm in the stem, none behind it."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.GroupNorm(1, 16),
        nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip
