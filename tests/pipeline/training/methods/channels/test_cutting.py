"""When channels are selected, how they come to 0 and stay there, and that the target is met."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline import config
from pipeline.config.sparse import function_of
from runtime.errors import UserError
from tests.pipeline.training.methods.channels.begun import begun, filled, training_over

DENSE = 64 * 9 * 4 + 64 * 9 * 4 * 3 + 6  # MACs of a SmallNet


def test_channels_fade_linearly_to_0_with_all_that_makes_them_and_are_held_there() -> None:
    network, hooks, _ = begun(
        "magnitude",
        10,
        target={"channels": 0.8, "reached_at": 0.6, "floor": 0.0},
        first_round=0.2,
        fade=1.0,
        scope="global",
    )
    filled(network.conv1.weight, [1, 1, 0.5, 1])
    filled(network.conv2.weight, [1, 1, 1])
    filled(network.bn1.weight, [2, 2, 2, 2])
    filled(network.bn1.bias, [1, 1, 1, 1])
    assert [step for step in range(10) if hooks.due(step)] == [1, 5]
    assert hooks.dead(1) is None, "nothing to remove yet"
    seen = []
    for step in range(2, 6):
        hooks.after_step(step, True)
        seen.append(network.bn1.weight[2].item())
    assert seen == pytest.approx([1.5, 1.0, 0.5, 0.0])
    assert network.bn1.weight.tolist() == [2, 2, 0, 2]
    assert not network.conv1.weight[2].any()
    assert hooks.dead(5) is not None
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    hooks.after_step(6, True)
    assert (network.bn1.weight == 0).tolist() == (network.bn1.bias == 0).tolist() == [False, False, True, False]
    assert hooks.pinned()["conv1.weight"][:, 0, 0, 0].tolist() == [False, False, True, False]
    assert not hooks.pinned()["conv2.weight"].any()
    assert hooks.figures(6)["dead_by_layer"] == {"conv1": 1, "conv2": 0}


@pytest.mark.parametrize("asked", [0.3, 0.55, 0.8])
@pytest.mark.parametrize("unit", ["macs", "channels"])
def test_the_target_is_met_within_one_channel(unit: str, asked: float) -> None:
    network, hooks, _ = begun("random", 20, target={unit: asked, "floor": 0.0}, rounds=2)
    for step in range(20):
        if hooks.due(step):
            hooks.dead(step)
    one, two = int((network.bn1.weight != 0).sum()), int((network.bn2.weight != 0).sum())
    shares = {"macs": (64 * 9 * one + 64 * 9 * one * two + 2 * two) / DENSE, "channels": (one + two) / 7}
    assert hooks.figures(19)["reached"] == pytest.approx(shares)
    assert abs(shares[unit] - asked) <= {"macs": 1 / 4, "channels": 1 / 7}[unit]
    assert hooks.figures(19)["dead"] == 7 - one - two


def test_widths_stay_multiples_of_the_alignment_and_above_the_floor() -> None:
    section, training = training_over(nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    ), method="random", target={"channels": 0.6, "floor": 0.3})  # fmt: skip
    training = dataclasses.replace(training, align=4)
    with pytest.raises(UserError, match=r"target.channels is 0.2, and 0.5 stay"):
        low = section.model_copy(update={"target": config.Target(channels=0.2, floor=0.3)})
        function_of("random")(low, training)
    hooks = function_of("random")(section, training)
    assert hooks.carried["status"] == {}


def test_what_cannot_be_met_is_refused_before_any_work() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    section, training = training_over(plain, method="slimming")
    with pytest.raises(UserError, match="no batch norm with a trained scale"):
        function_of("slimming")(section, training)
    assert function_of("magnitude")(*training_over(plain, method="magnitude")).carried
    with pytest.raises(UserError, match="a training of 1 step"):
        function_of("magnitude")(section, dataclasses.replace(training, steps=1))
    for keys, message in (
        ({"target": {"latency_ms": 1.0}}, "demp alone steers to a latency"),
        ({"target": {"macs": 0.5, "reached_at": 0.1}, "first_round": 0.2}, "is not before target.reached_at"),
    ):
        with pytest.raises(ValidationError, match=message):
            config.sparse_of(method="magnitude", **keys)
