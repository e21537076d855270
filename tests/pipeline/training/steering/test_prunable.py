"""Only channels that leave the network once their norms say zero are steered to death; what is told is what is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.surgery import shrink
from pipeline.surgery.channels.costs import costs_of
from pipeline.surgery.rules.walk import analyse
from pipeline.training.steering.prunable import candidates, pairs_of, rows_of
from runtime.macs import macs
from tests.pipeline.training.small import SHAPE, faded, steering_of


def unit(inputs: int, outputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), activation())


class Net(nn.Module):
    """(N, 1, H, W) -> (N, 10); `kind` says what lies between two ordinary layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last, self.linear = kind, unit(1, 8), unit(8, 8), nn.Linear(8, 10)
        self.conv, self.norm, self.relu = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.skip, self.skip_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=kind != "constant skip")
        for norm in (self.first[1], self.norm, self.last[1]):
            nn.init.constant_(norm.bias, 0.5)  # type: ignore[arg-type]  # a scale of 0 alone leaves that
        if kind == "no shift":
            self.norm.bias.requires_grad_(False)
            self.norm.bias = None  # type: ignore[assignment]

    def between(self, x: Tensor) -> Tensor:
        """What is added to, or read beside, the norm of the middle layer."""
        if self.kind == "bare skip":
            return self.relu(self.norm(self.conv(x)) + self.skip(x))  # type: ignore[no-any-return]
        if self.kind in ("skip", "constant skip"):
            return self.relu(self.norm(self.conv(x)) + self.skip_norm(self.skip(x)))  # type: ignore[no-any-return]
        if self.kind == "read before its norm":
            y = self.conv(x)
            return self.relu(self.norm(y)) + y.mean()  # type: ignore[no-any-return]
        if self.kind == "no norm":
            return self.relu(self.conv(x))  # type: ignore[no-any-return]
        return self.relu(self.norm(self.conv(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.last(self.between(self.first(x))).mean((2, 3)))  # type: ignore[no-any-return]


def can_go(network: nn.Module) -> dict[str, list[bool]]:
    """Name of each norm's scale -> which of its channels may be steered to death."""
    _, state = steering_of(network, config.Target(channels=0.5))
    costs = costs_of(analyse(state.anatomy.traced))
    found = candidates(state.anatomy.traced, costs, rows_of(pairs_of(state, costs)), np.ones(costs.count, bool))
    return {name: found[classes].tolist() for name, classes in costs.scales.items()}


@pytest.mark.parametrize(
    ("kind", "middle"),
    [
        ("plain", True),
        ("skip", True),
        ("bare skip", False),
        ("constant skip", False),
        ("read before its norm", False),
        ("no shift", False),
    ],
)
def test_what_lives_on_beside_its_norm_is_no_candidate(kind: str, middle: bool) -> None:
    found = can_go(Net(kind))
    assert found["norm.weight"] == [middle] * 8
    assert found["first.1.weight"] == found["last.1.weight"] == [True] * 8


def test_trying_leaves_every_parameter_as_it_was() -> None:
    network = Net("skip")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    can_go(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["bare skip", "read before its norm", "no norm", "skip"])
def test_what_is_said_to_be_reached_is_what_the_surgery_leaves(kind: str) -> None:
    network = Net(kind).eval()
    dense = macs(network, SHAPE)
    steering, _ = steering_of(network, config.Target(macs=0.5, floor=0.2))
    faded(steering, network, 50, torch.Generator().manual_seed(0))
    left = shrink(network, (torch.zeros(2, *SHAPE),)).model
    assert steering.reached()["macs"] == pytest.approx(macs(left, SHAPE) / dense) == pytest.approx(0.5, rel=0.07)


def test_a_target_out_of_reach_is_told_once_with_what_stands_in_its_way() -> None:
    told: list[str] = []
    network = Net("bare skip")
    steering, _ = steering_of(network, config.Target(channels=0.3, floor=0.25), note=told.append)
    faded(steering, network, 50, torch.Generator().manual_seed(0))
    (text,) = told  # two of 8, all 8 of both convolutions of the middle, two of 8: 20 of the 32 channels
    assert text.startswith("the target is out of reach: target.floor 0.25, channels in steps of 1 and what no batch")
    assert "(conv)" in text and text.endswith("leave 0.625 of the channels, 0.3 is needed")
    assert steering.reached()["channels"] == 0.625
    told.clear()
    network = Net("plain")
    steering, _ = steering_of(network, config.Target(channels=0.3, floor=0.25), note=told.append)
    faded(steering, network, 50, torch.Generator().manual_seed(0))
    assert not told


def test_what_faded_in_the_last_period_counts_where_that_ends_with_the_training() -> None:
    """`pick` does not come after the last step."""
    network = Net("plain")
    steering, _ = steering_of(network, config.Target(channels=0.5, reached_at=0.999), total=50)
    assert steering.bounds[-1] == 50
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for step in range(50):
        for norm in norms:
            norm.weight.grad, norm.bias.grad = torch.ones(8), torch.zeros(8)
        steering.after_step(step)
        if steering.due(step) and step < 49:
            steering.pick(step)
    scales: list[Tensor] = [network.get_parameter(f"{name}.weight") for name in ("first.1", "norm", "last.1")]
    zeros = int(torch.cat(scales).eq(0).sum())
    assert steering.reached()["channels"] == 1 - zeros / 24 == pytest.approx(0.5)


def test_groups_of_one_channel_are_left_alone() -> None:
    network = nn.Sequential(unit(1, 1), unit(1, 4), nn.Flatten(), nn.Linear(4 * 64, 10))
    steering, _ = steering_of(network, config.Target(channels=0.6))
    faded(steering, network, 50, torch.Generator().manual_seed(0))
    assert network.get_parameter("0.1.weight").item() == 1.0
