"""Channels that a training holds at zero go, whatever their activation would let them learn; the rest trains on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from pipeline.surgery.shrink_training import shrink_training

GONE = torch.tensor([True, False, False, True, False, True, False, False])


def network_of(activation: nn.Module) -> nn.Module:
    """float64; the scales and shifts of three of eight channels are 0."""
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), activation]
    network = nn.Sequential(*first, nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(6 * 16, 3))
    hold(network)
    return network.double().train()


@torch.no_grad()
def hold(network: nn.Module) -> None:
    for name in ("1.weight", "1.bias"):
        network.get_parameter(name)[GONE] = 0.0


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(12, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 3


def stepped(network: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x, y = batch(number)
    optimizer.zero_grad()
    torch.autograd.backward(nn.functional.cross_entropy(network(x), y))
    optimizer.step()


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(0.1), nn.ReLU()], ids=lambda a: type(a).__name__
)
def test_pinned_channels_go_and_the_rest_trains_on_alike(activation: nn.Module) -> None:
    network = network_of(activation)
    optimizer = SGD(network.parameters(), 0.05, momentum=0.9)
    stepped(network, optimizer, 0)
    hold(network)
    pinned = dict.fromkeys(("1.weight", "1.bias"), GONE)
    made = shrink_training(network, (batch(1)[0],), optimizer, pinned=pinned)
    compact = made.compact.model
    assert made.step_rel_diff is not None and made.step_rel_diff < 1e-9
    assert compact.get_parameter("0.weight").shape == (5, 1, 3, 3)
    for number in range(1, 6):
        stepped(network, optimizer, number)
        hold(network)
        stepped(compact, made.optimizer, number)
    for name, index in (("0.weight", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1)):
        kept = network.get_parameter(name).index_select(index, torch.arange(8)[~GONE])
        torch.testing.assert_close(compact.get_parameter(name), kept, rtol=0, atol=1e-12)
    torch.testing.assert_close(compact.eval()(batch(9)[0]), network.eval()(batch(9)[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pinned", [None, {"1.weight": GONE}, {"1.weight": ~GONE, "1.bias": ~GONE}])
def test_what_is_not_pinned_and_learns_stays(pinned: dict[str, Tensor] | None) -> None:
    network = network_of(nn.GELU())
    made = shrink_training(network, (batch(1)[0],), SGD(network.parameters(), 0.05), pinned=pinned)
    assert made.compact.model.get_parameter("0.weight").shape == (8, 1, 3, 3)
