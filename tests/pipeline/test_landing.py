"""Where a steered training landed is judged by the network that surgery left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from pipeline import config, steps
from pipeline.surgery.stage import Cut
from pipeline.training import latency
from pipeline.training.latency import Stopwatch
from pipeline.training.stage import Trained
from runtime.gate import Gate
from runtime.latency import Comparison, Speedup

DENSE = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2, bias=False))
COMPACT = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 2, bias=False))


def landed(target: dict[str, Any] | None, reached: dict[str, float] | None = None) -> Gate | None:
    """Of a training that told `reached`, whose network surgery made COMPACT: 2 of 8 channels and of the MACs."""
    demp = config.Demp.model_validate({} if target is None else {"target": target})
    task = SimpleNamespace(
        config=SimpleNamespace(demp=demp, threads=1), data=lambda: SimpleNamespace(input_shape=(1, 2, 2))
    )
    trained, cut = SimpleNamespace(reached=reached), SimpleNamespace(channels_before=8, channels_after=2)
    return steps.landing(cast(steps.Task, task), cast(Trained, trained), cast(Cut, cut), (DENSE, COMPACT))


def test_without_a_target_there_is_no_gate() -> None:
    assert landed(None) is None


@pytest.mark.parametrize("key", ["macs", "channels"])
def test_shares_are_those_of_the_compact_network(key: str) -> None:
    gate = landed({key: 0.25}, {key: 0.9})
    assert gate is not None and (gate.status, gate.value, gate.limit) == ("pass", 0.25, 0.25)
    missed = landed({key: 0.5}, {key: 0.5})
    assert missed is not None and missed.status == "fail" and "50.0 % under" in missed.reason


def test_a_latency_is_measured_on_the_compact_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.5 times as fast as the dense network, of 5 ms when the training began: 2 ms, whatever the training told."""
    timed: list[tuple[nn.Module, ...]] = []
    conditions: dict[str, Any] = {"before": {"governor": None}}

    def compared(self: Stopwatch, *networks: nn.Module) -> Comparison:
        assert (self.shape, self.batch, self.threads) == ((1, 2, 2), 16, 1)
        timed.append(networks)
        return Comparison((), (Speedup(2.5, (2.0, 2.6), "faster", 1.1),), {}, (), conditions)

    monkeypatch.setattr(Stopwatch, "compared", compared)
    told = {"latency_ms": 3.0, "dense_latency_ms": 5.0}
    met = landed({"latency_ms": 2.0, "batch": 16}, told)
    assert met is not None and (met.status, met.value, met.limit) == ("pass", 2.0, 2.0)
    assert timed == [(DENSE, COMPACT)]
    far = landed({"latency_ms": 3.0, "batch": 16}, told)
    assert far is not None and far.status == "fail", "5 / 2.0 ms, the interval's upper end, is off by a sixth"
    assert "2 ms, asked for 3 ms: 33.3 % under (95 % interval 1.92 to 2.5 ms)" in far.reason
    near = landed({"latency_ms": 2.3, "batch": 16}, told)
    assert near is not None and near.status == "inconclusive", "1.92 to 2.5 ms holds 2.3"
    conditions["others_busy_pct"] = 40.0
    for asked in (2.0, 3.0):
        doubted = landed({"latency_ms": asked, "batch": 16}, told)
        assert doubted is not None and doubted.status == "inconclusive"
        assert "other processes took 40 % of the cores" in doubted.reason


def test_the_stopwatch_tells_two_networks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "COMPARED_LIMIT_S", 1.0)
    slow = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.LazyLinear(2))
    fast = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    for network in (slow, fast):
        network(torch.zeros(1, 1, 16, 16))
    told = Stopwatch((1, 16, 16), batch=8, threads=1).compared(slow, fast).speedups[0]
    assert told.verdict == "faster" and told.ratio > 1
    assert told.ci95[0] <= told.ratio <= told.ci95[1]
