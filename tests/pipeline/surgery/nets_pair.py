"""Two layers with dead channels, and whatever a subclass puts behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEAD, WIDTH = 6, 16


class DeadPair(nn.Module):
    """3 -> 16 -> 16 channels, 6 of each layer dead by proof, and 5 classes.

    `BOTH`: parameters left where both layers lose them. `FIRST`: where the second layer's output is frozen.
    """

    BOTH = (3 * 10 * 9 + 2 * 10) + (10 * 10 * 9 + 2 * 10) + (10 * 5 + 5)
    FIRST = (3 * 10 * 9 + 2 * 10) + (10 * 16 * 9 + 2 * 16) + (16 * 5 + 5)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.a, self.b = self._layer(3), self._layer(WIDTH)
            self.classes = nn.Linear(WIDTH, 5)
        self.eval()

    @staticmethod
    def _layer(ins: int) -> nn.Sequential:
        norm = nn.BatchNorm2d(WIDTH)
        with torch.no_grad():
            norm.weight[:DEAD], norm.bias[:DEAD] = 0.0, -1.0  # ReLU never opens
        return nn.Sequential(nn.Conv2d(ins, WIDTH, 3, padding=1, bias=False), norm, nn.ReLU())

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.between(self.b(self.a(x))).mean((2, 3)))  # type: ignore[no-any-return]
