"""The smaller images that the law is asked on: every entry of every kernel counts on them, or they are not taken."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pipeline.surgery import shrink
from pipeline.surgery.proof.inputs import Kernel, smaller
from pipeline.surgery.trace import trace

IMAGE = torch.zeros(1, 3, 224, 224)


def network(*last: nn.Module) -> nn.Sequential:
    """Five halvings, as most networks have."""
    widths = (3, 4, 4, 4, 4, 4)
    halvings = [nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths)]
    return nn.Sequential(*halvings, *last).eval()


def size_for(*last: nn.Module, image: Tensor = IMAGE) -> tuple[int, ...] | None:
    example = smaller(trace(network(*last), (image,)))
    return None if example is None else tuple(example[0].shape[2:])


@pytest.mark.parametrize(
    ("last", "side"),
    [(nn.Conv2d(4, 4, 3, padding=1), 64), (nn.Conv2d(4, 4, 3), 96), (nn.Conv2d(4, 4, 3, 2, 1), 96),
     (nn.Conv2d(4, 4, 3, padding=2, dilation=2), 96), (nn.Conv2d(4, 4, 7), None), (nn.Conv2d(4, 4, 5), 160)],
)  # fmt: skip
def test_the_smallest_size_on_which_every_entry_of_a_kernel_counts(last: nn.Conv2d, side: int | None) -> None:
    assert size_for(last) == (None if side is None else (side, side))
    if side is None:
        return
    net, counted = network(last), []
    for size in (side, side - 32):
        net.zero_grad()
        try:
            net(torch.randn(2, 3, size, size)).square().sum().backward()
        except RuntimeError:  # the kernel is larger than the map
            counted.append(False)
            continue
        gradient = last.weight.grad
        counted.append(gradient is not None and bool((gradient != 0).all()))
    assert counted == [True, False] or side == 64  # which is the least that is tried


def test_other_shapes_of_images_keep_theirs_and_odd_ones_are_taken_as_they_are() -> None:
    last = nn.Conv2d(4, 4, 3, padding=1)
    assert size_for(last, image=torch.zeros(1, 3, 256, 512)) == (64, 128)
    assert size_for(last, image=torch.zeros(1, 3, 225, 225)) is None
    assert size_for(last, image=torch.zeros(1, 3, 64, 64)) is None


class Sized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / float(x.shape[2])


def test_the_certificate_says_the_size_and_a_network_of_one_size_is_asked_on_that() -> None:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    sets = [
        shrink(network(*last), (IMAGE,)).certificate["law"]["inputs"]
        for last in (pooled, (Sized(), *pooled), (nn.Flatten(), nn.Linear(4 * 7 * 7, 2)))
    ]
    assert sets[0] == ("random, batch 1 of 64x64", "random, batch 2 of 64x64")
    assert sets[1] == sets[2] == ("random, batch 1", "random, batch 2")


def test_entries_beside_the_map_do_not_count() -> None:
    assert not Kernel(2, 2, 3, 1, 2, 1).whole(1.0)  # starts at -1 alone: the first entry is never on the map
    assert Kernel(2, 2, 3, 1, 1, 1).whole(1.0) and Kernel(2, 3, 3, 1, 2, 1).whole(1.0)
