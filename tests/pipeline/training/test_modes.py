"""Modules that a network keeps in eval mode while it trains stay there after channels were cut out."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

import demport
from pipeline.training.modes import frozen_in_training, train_mode


class FrozenNorms(nn.Sequential):
    """Fine-tuning: its batch norms never learn statistics. Channels 1 and 3 of the first are dead."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2),
        )  # fmt: skip

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def dying() -> FrozenNorms:
    torch.manual_seed(0)
    network = FrozenNorms()
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        for channel in (1, 3):
            norm.weight[channel], norm.bias[channel] = 0.0, -1.0
    return network


def test_which_modules_stay() -> None:
    network = dying()
    network[0].eval()
    before = [module.training for module in network.modules()]
    assert frozen_in_training(network) == {"1", "4"} and frozen_in_training(nn.BatchNorm2d(3)) == set()
    assert [module.training for module in network.modules()] == before
    plain = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).eval()
    train_mode(plain, frozenset("1"))
    assert plain[0].training and not plain[1].training and plain.training


def test_statistics_stay_after_a_removal() -> None:
    network = dying().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    x, y = torch.randn(8, 1, 6, 6), torch.arange(8) % 2
    sparsifier = demport.sparsify(network, optimizer, (x,), steps=6, options={"prune_every": 2, "sigma_peak": 0})
    removed = 0
    for _ in range(6):
        loss: Tensor = nn.functional.cross_entropy(sparsifier.network(x), y) + sparsifier.penalty()
        sparsifier.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sparsifier.optimizer.step()
        removed += sparsifier.step(x)
    norms = [module for module in sparsifier.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert removed >= 1 and norms[0].num_features == 2
    assert all(norm.running_mean is not None and not norm.running_mean.any() for norm in norms)
