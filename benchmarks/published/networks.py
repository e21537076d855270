"""The small networks of the papers, for images (N, C, H, W)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

InputShape = tuple[int, int, int]


class Pixels(nn.Module):
    """Images -> the pixels with these numbers, (N, n); all in their order where none are named."""

    numbers: Tensor

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(list(numbers)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.numbers)


def mlp(
    *, num_classes: int, input_shape: InputShape, widths: Sequence[int] = (300, 100), pixels: Sequence[int] = ()
) -> nn.Module:
    """Linear layers of these widths with ReLUs between them; LeNet-300-100 by default. He's normal initialisation."""
    sizes = [len(pixels) or math.prod(input_shape), *widths, num_classes]
    layers: list[nn.Module] = [Pixels(pixels) if pixels else nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return initialised(nn.Sequential(*layers[:-1]))


def lenet5(*, num_classes: int, input_shape: InputShape) -> nn.Module:
    """LeNet-5 as Caffe has it: convolutions of 20 and 50 channels, 5x5, and a hidden layer of 500."""
    side = ((input_shape[1] - 4) // 2 - 4) // 2
    layers = [
        nn.Conv2d(input_shape[0], 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(50 * side * side, 500), nn.ReLU(), nn.Linear(500, num_classes),
    ]  # fmt: skip
    return initialised(nn.Sequential(*layers))


def initialised(network: nn.Module) -> nn.Module:
    """Weights of mean square 2 / fan-in, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return network
