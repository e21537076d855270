"""Worked by hand: a 3x3 convolution, a strided grouped one, a linear layer, and a parameter used twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.macs import denormals, macs, params


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, bias=False)
        self.head = nn.Linear(16, 10)
        self.tied = nn.Linear(16, 10)
        self.tied.weight = self.head.weight

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(images)))
        x = torch.relu(self.second(x)).mean((2, 3))
        result: Tensor = self.head(x) + self.tied(x)
        return result


# 8x8 outputs x 8 channels x (3 x 3 x 3); 4x4 outputs x 16 channels x (3 x 3 x 2 of its group); two heads of 16 x 10.
MACS = 64 * 8 * 27 + 16 * 16 * 18 + 2 * 160


def test_multiply_accumulates_by_hand() -> None:
    net = Net()
    assert MACS == 18752
    assert macs(net, (3, 8, 8)) == MACS
    assert macs(net, (3, 16, 16)) == 4 * (64 * 8 * 27 + 16 * 16 * 18) + 320
    assert net.training
    assert net.norm.num_batches_tracked is not None
    assert int(net.norm.num_batches_tracked) == 0


def test_parameters_by_hand() -> None:
    first, norm, second, heads = 8 * 27 + 8, 16, 16 * 18, 160 + 10 + 10  # the heads share their weight
    assert params(Net()) == first + norm + second + heads
    assert params(nn.ReLU()) == 0


def test_another_type_of_parameters() -> None:
    assert macs(Net().double().eval(), (3, 8, 8)) == MACS
    assert macs(nn.Identity(), (3, 8, 8)) == 0


def test_denormal_weights_are_counted() -> None:
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.0, 1e-40, -1e-41, 1.0]]))
    assert denormals(module) == 2
    assert denormals(nn.BatchNorm2d(3).half()) == 0
