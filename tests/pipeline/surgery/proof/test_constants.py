"""The certificate says of every dead channel that stays why it does: a network for every reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.surgery import Compact, shrink
from pipeline.surgery.proof.constants import JOINED
from tests.pipeline.surgery.laws import difference

EXAMPLE = (torch.zeros(2, 3, 6, 6),)
DEAD = [1, 2]


class Read(nn.Module):
    """Eight channels, of which the first layer makes two (`DEAD`) constants; `reading` gets the network and them."""

    def __init__(self, reading: Callable[[Any, Tensor], Tensor], value: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reading = reading
        self.a, self.other, self.tail = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.pointwise, self.norm = nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8)
        self.padded = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.kernel, self.scale = nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)
        with torch.no_grad():
            self.a.weight[DEAD] = 0
            self.a.bias[DEAD] = value  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.reading(self, torch.relu(self.a(x)))


READINGS: Mapping[str, tuple[float, Callable[[Any, Tensor], Tensor]]] = {
    "a constant that enters a grouped convolution with zero padding": (0.5, lambda n, y: n.tail(n.padded(y))),
    "a constant that enters a weight which is used more than once": (
        0.5, lambda n, y: n.tail(n.pointwise(torch.relu(n.pointwise(y)))),
    ),
    "a constant that no bias takes up": (0.5, lambda n, y: F.conv2d(y, n.kernel)),
    "a constant that enters a convolution of computed weights with zero padding": (
        0.5, lambda n, y: n.tail(F.conv2d(y, n.kernel * n.scale, padding=1)),
    ),
    "a constant other than 0 in the statistics of a normalisation": (0.5, lambda n, y: n.tail(n.norm(y))),
    "a constant other than 0 in a product of activations": (
        0.5, lambda n, y: y.flatten(2).transpose(1, 2) @ y.flatten(2),
    ),
    "a constant other than 0 in a sum over channels": (0.5, lambda n, y: y.sum(1)),
    "output of the network": (0.5, lambda n, y: y),
    "no rule for cumsum": (0.0, lambda n, y: n.tail(torch.cumsum(y, 1))),
    JOINED: (0.0, lambda n, y: n.tail(y + n.other(n.seen))),
}  # fmt: skip


def reasons(compact: Compact) -> dict[str, int]:
    """Of both lists of the certificate."""
    total: dict[str, int] = {}
    for rows, key in (("groups", "kept_dead_because"), ("constants", "because")):
        for row in compact.certificate[rows]:
            for reason, n in row[key].items():
                total[reason] = total.get(reason, 0) + n
    return total


@pytest.mark.parametrize("reason", READINGS)
def test_a_constant_that_stays_has_its_reason(reason: str) -> None:
    value, reading = READINGS[reason]
    net = Read(reading, value).eval()
    compact = shrink(net, EXAMPLE)
    assert reasons(compact) == {reason: len(DEAD)}
    assert [row["layer"] for row in compact.certificate["constants"]] == ["a"]
    assert compact.model.get_parameter("a.weight").shape[0] == 8 and difference(net, compact.model, EXAMPLE) < 1e-6


def test_a_frozen_part_says_that_it_was_asked_for() -> None:
    net = Read(lambda n, y: n.tail(y), 0.0).eval()
    assert reasons(shrink(net, EXAMPLE)) == {}
    assert reasons(shrink(net, EXAMPLE, freeze=["a"])) == {"frozen as asked": 2}


def tail(n: Any, y: Tensor) -> Tensor:
    return n.tail(y)  # type: ignore[no-any-return]


def every_channel(net: nn.Module) -> None:
    net.get_parameter("a.weight").zero_()
    net.get_parameter("a.bias").zero_()


@pytest.mark.parametrize(
    ("reading", "change", "align", "expected", "constants"),
    [
        (tail, None, 4, {"a multiple of 4 channels": 2}, {}),
        (tail, every_channel, 1, {"a layer keeps one channel": 1}, {"output of the network": 4}),
        (lambda n, y: n.tail(n.padded(y)), None, 1, {"groups or heads keep equal numbers": 2}, {}),
    ],
)
@torch.no_grad()
def test_dead_channels_that_nobody_asks_for_have_theirs(
    reading: Callable[[Any, Tensor], Tensor],
    change: Any,
    align: int,
    expected: dict[str, int],
    constants: dict[str, int],
) -> None:
    net = Read(reading, 0.0).eval()
    if change is not None:
        change(net)
    compact = shrink(net, EXAMPLE, align=align)
    assert reasons(compact) == expected | constants
    assert sum(row["kept_dead"] for row in compact.certificate["groups"]) == sum(expected.values())


def test_all_reasons_in_one_network() -> None:
    """Side by side, every part with a first layer of its own: of 20 dead channels each has its reason."""

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Read(reading, value) for value, reading in READINGS.values())

        def forward(self, x: Tensor) -> list[Tensor]:
            return [part(x) for part in self.parts]

    compact = shrink(All().eval(), EXAMPLE)
    assert reasons(compact) == dict.fromkeys(READINGS, 2)
    assert compact.certificate["channels"]["dead"] == 0 and len(compact.certificate["constants"]) == len(READINGS)
