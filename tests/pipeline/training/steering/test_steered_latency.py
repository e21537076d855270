"""Steering to a latency: by a clock that is not exact, of networks that stay whole, and targets that are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.surgery.channels.costs import Costs, costs_of
from pipeline.surgery.rules.walk import analyse
from pipeline.training.state import TrainState
from pipeline.training.steering.stopwatch import Stopwatch, spread, without
from runtime.errors import UserError
from runtime.macs import macs
from runtime.measure.latency import Comparison, Speedup
from tests.pipeline.training.small import SHAPE, faded, steering_of


def network_of(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (1, width, width):
        layers += [nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 64, 10))


def clock_of(dense: nn.Module, overhead: float, noise: float, seed: int) -> Callable[..., tuple[float, float]]:
    """ms of two networks: 1 for the dense one, a part of it independent of the MACs; each off by so much at random."""
    whole, draw = macs(dense, SHAPE), np.random.default_rng(seed)

    def ms(*networks: nn.Module) -> tuple[float, float]:
        exact = [overhead + (1 - overhead) * macs(network, SHAPE) / whole for network in networks]
        first, second = (value * (1 + noise * draw.standard_normal()) for value in exact)
        return first, second

    return ms


@pytest.mark.parametrize("seed", range(6))
def test_a_clock_that_is_off_by_two_percent_does_not_carry_the_landing_away(seed: int) -> None:
    """Nothing is cut on the way, so the clock has to time what would be left."""
    network = network_of()
    clock = clock_of(network, 0.3, 0.02, seed)
    steering, state = steering_of(network, config.Target(latency_ms=0.6), 100, 1, clock)
    first = steering.reached()["dense_latency_ms"]
    faded(steering, network, 50, torch.Generator().manual_seed(seed))
    exact = 0.3 + 0.7 * steering.reached()["macs"]
    assert exact == pytest.approx(0.6 / first, rel=0.03)
    left = without(state, ~steering._alive_now())
    assert macs(left, SHAPE) == pytest.approx(steering.reached()["macs"] * macs(network, SHAPE))


def test_a_latency_that_the_dense_network_has_already_is_refused() -> None:
    network = network_of(4)
    steering, _ = steering_of(network, config.Target(latency_ms=2.0), 100, 1, clock_of(network, 0.3, 0.0, 0))
    with pytest.raises(UserError, match=r"target.latency_ms is 2, and the dense network takes 1 ms"):
        steering.after_step(0)
    steering.after_step(99)  # of a training that goes on, perhaps on a faster day


def test_a_latency_below_what_does_not_depend_on_channels_is_told() -> None:
    told: list[str] = []
    network = network_of(8)
    clock = clock_of(network, 0.5, 0.0, 0)
    steering, _ = steering_of(network, config.Target(latency_ms=0.4), 100, 1, clock, told.append)
    faded(steering, network, 50, torch.Generator().manual_seed(0))
    assert told == ["the target is out of reach: 0.5 ms do not depend on the channels"]
    assert steering.reached()["channels"] > 0.25, "what cannot help is not done to the end"


def of_middle_layers() -> tuple[TrainState, Costs, dict[str, float]]:
    """Three layers of 8 channels. Of the middle one's each has 8 inputs and 8 readers, nine taps, 64 places. And what
    each channel's share of the MACs is."""
    network = network_of(8)
    _, state = steering_of(network, config.Target(channels=0.5))
    whole = (9 * 8 + 9 * 8 * 8 * 2) * 64 + 8 * 64 * 10
    shares = {"0": (9 + 72) * 64 / whole, "3": 144 * 64 / whole, "6": (72 + 10) * 64 / whole}
    return state, costs_of(analyse(state.anatomy.traced)), shares


def exactly(whole: nn.Module, less: nn.Module) -> float:
    """By a clock of so much a MAC."""
    return 1 - macs(less, SHAPE) / macs(whole, SHAPE)


def test_what_a_channel_takes_is_the_time_that_half_of_its_group_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(self: Stopwatch, whole: nn.Module, less: nn.Module) -> tuple[float, float, float]:
        return 0.001, 2 * exactly(whole, less), 0.99  # twice as much as by its MACs: the measurement is believed

    monkeypatch.setattr(Stopwatch, "saved", saved)
    state, costs, shares = of_middle_layers()
    slopes = Stopwatch(SHAPE).slopes(state, costs)
    assert slopes == pytest.approx({name: 2 * share for name, share in shares.items()})
    each = spread({**slopes, "3": 0.0}, costs)
    found = {group.name: each[group.classes].tolist() for group in costs.groups}
    least = 2 * shares["0"]
    assert found == {name: pytest.approx([took] * 8) for name, took in
                     (("0", least), ("3", least), ("6", 2 * shares["6"]))}  # fmt: skip


@pytest.mark.parametrize(
    ("interval", "taken"),
    [((-0.2, -0.05, 0.6), "macs"), ((-0.2, 0.001, 0.6), "macs"), ((-0.2, 0.01, 0.04), 0.04), ((-0.2, -0.1, -0.01), 0)],
    ids=["seems slower", "seems nothing", "less than by its MACs", "is slower"],
)
def test_a_measurement_that_tells_nothing_makes_no_channel_free(
    interval: tuple[float, float, float], taken: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of any of these groups has more than 0.04 and less than 0.6 of the MACs."""
    monkeypatch.setattr(Stopwatch, "saved", lambda *_: interval)
    state, costs, shares = of_middle_layers()
    slopes = Stopwatch(SHAPE).slopes(state, costs)
    assert slopes == pytest.approx(
        {name: share if taken == "macs" else float(taken) / 4 for name, share in shares.items()}
    )


def test_what_is_saved_is_a_share_of_the_time_with_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio of 2.5 saves 60 %; one of 0.8 costs 25 %."""
    told = Comparison((), (Speedup(2.5, (0.8, 4.0), "not distinguishable", 1.1),), {}, (), {})
    timed: list[int] = []

    def compared(sessions: list[object], *_: object, **__: object) -> Comparison:
        timed.append(len(sessions))
        return told

    monkeypatch.setattr("pipeline.training.steering.stopwatch.compare", compared)
    assert Stopwatch(SHAPE).saved(network_of(4), network_of(4)) == pytest.approx((-0.25, 0.6, 0.75))
    assert timed == [2]


def test_timing_leaves_a_network_and_its_buffers_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another module may hold the same tensors: those of a network that several processes train."""
    network = network_of(4).train()
    before = {name: (value, value.data_ptr()) for name, value in network.state_dict(keep_vars=True).items()}
    monkeypatch.setattr("pipeline.training.steering.stopwatch.TIME_LIMIT_S", 0.05)
    Stopwatch(SHAPE, batch=2, threads=1).ms(network, network)
    after: dict[str, Tensor] = network.state_dict(keep_vars=True)
    assert network.training and all(after[name] is value for name, (value, _) in before.items())
    assert all(value.data_ptr() == at for value, at in before.values())
