"""How many channels a random mask leaves: a closed form, worked out apart from the code.

With Erdos-Renyi-Kernel densities a layer of o outputs, i inputs and k x k kernels has eps (o + i + 2k) weights, so that
where o and i are alike and large an output has about 2 eps of them, Poisson distributed, and so has an input. An inner
channel stays if it has one of either: (1 - exp(-2 eps))^2 of them do, with eps = nnz / sum(o + i + 2k).
"""

from __future__ import annotations

from itertools import pairwise
from math import exp

import pytest
import torch
from torch import nn

from pipeline.surgery import shrink
from pipeline.training.masks import erk_counts, largest

WIDTH, KERNEL = 384, 3


def remaining(eps: float, layers: int, seed: int) -> tuple[float, float]:
    """(share of the inner channels that stay, eps of the mask) in a chain of convolutions."""
    widths = [WIDTH] * (layers + 1)
    net = nn.Sequential()
    for a, b in pairwise(widths):
        net.extend([nn.Conv2d(a, b, KERNEL, padding=1, bias=False), nn.ReLU()])
    weights = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    shapes = {name: p.shape for name, p in weights.items()}
    sides = sum(p.shape[0] + p.shape[1] + 2 * KERNEL for p in weights.values())
    counts = erk_counts(shapes, eps * sides / sum(p.numel() for p in weights.values()))
    random = torch.Generator().manual_seed(seed)
    masks = {name: largest(torch.rand(shape, generator=random), counts[name]) for name, shape in shapes.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
    compact = shrink(net.eval(), (torch.zeros(1, WIDTH, 4, 4),), verify=False)
    channels = compact.certificate["channels"]
    assert channels["before"] == WIDTH * (layers - 1)
    return channels["after"] / channels["before"], sum(counts.values()) / sides


@pytest.mark.parametrize("eps", [0.25, 0.5, 1.0])
def test_a_static_erk_mask_leaves_what_the_closed_form_says(eps: float) -> None:
    shares, actual = zip(*(remaining(eps, 2, seed) for seed in range(3)), strict=True)
    expected = (1 - exp(-2 * actual[0])) ** 2
    deviation = (expected * (1 - expected) / (3 * WIDTH)) ** 0.5  # of the mean of so many channels
    assert actual[0] == pytest.approx(eps, rel=0.01)
    assert sum(shares) / 3 == pytest.approx(expected, abs=3.5 * deviation)


def test_in_a_deep_chain_channels_that_read_dead_ones_alone_go_too() -> None:
    share, eps = remaining(2.0, 6, 0)
    assert share == pytest.approx((1 - exp(-2 * eps)) ** 2, abs=0.02)
    fewer, eps = remaining(0.5, 6, 0)
    assert fewer < (1 - exp(-2 * eps)) ** 2 - 0.05  # each layer takes away from what the next one reads
