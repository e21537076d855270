"""Where a steered training landed is judged by the network that surgery left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.check.target import landing
from pipeline.results import Cut, Trained
from pipeline.stages.check import demand_accuracy
from pipeline.training.steering import stopwatch as latency
from pipeline.training.steering.stopwatch import Stopwatch
from runtime.errors import UserError
from runtime.gate import Gate
from runtime.measure.latency import Comparison, Speedup

DENSE = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2, bias=False))
COMPACT = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 2, bias=False))


def landed(target: dict[str, Any] | None, reached: dict[str, float] | None = None) -> Gate | None:
    """Of a training that told `reached`, whose network surgery made COMPACT: 2 of 8 channels and of the MACs."""
    demp = config.sparse_of(**{} if target is None else {"target": target})
    trained, cut = SimpleNamespace(reached=reached), SimpleNamespace(channels_before=8, channels_after=2)
    return landing(demp.target, cast(Trained, trained), cast(Cut, cut), (DENSE, COMPACT), (1, 2, 2), 1)


def test_without_a_target_there_is_no_gate() -> None:
    assert landed(None) is None


@pytest.mark.parametrize("key", ["macs", "channels"])
def test_shares_are_those_of_the_compact_network(key: str) -> None:
    gate = landed({key: 0.25}, {key: 0.9})
    assert gate is not None and (gate.status, gate.value, gate.limit) == ("pass", 0.25, 0.25)
    smaller, missed = landed({key: 0.5}, {key: 0.5}), landed({key: 0.2}, {key: 0.2})
    assert smaller is not None and smaller.status == "pass" and "50.0 % under" in smaller.reason
    assert missed is not None and missed.status == "fail" and "25.0 % over" in missed.reason


def test_a_latency_is_measured_on_the_compact_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.5 times as fast as the dense network, of 5 ms when the training began: 2 ms, whatever the training told."""
    timed: list[tuple[nn.Module, ...]] = []
    conditions: dict[str, Any] = {"before": {"governor": None}}

    def compared(self: Stopwatch, *networks: nn.Module) -> Comparison:
        assert (self.shape, self.batch, self.threads) == ((1, 2, 2), 16, 1)
        timed.append(networks)
        return Comparison((), (Speedup(2.5, (2.45, 2.55), "faster", 1.1),), {}, (), conditions)

    monkeypatch.setattr(Stopwatch, "compared", compared)
    told = {"latency_ms": 3.0, "dense_latency_ms": 5.0}
    met = landed({"latency_ms": 2.0, "batch": 16}, told)
    assert met is not None and (met.status, met.value, met.limit) == ("pass", 2.0, 2.0)
    assert timed == [(DENSE, COMPACT)]
    faster = landed({"latency_ms": 3.0, "batch": 16}, told)
    assert faster is not None and faster.status == "pass"
    assert "2 ms, target 3 ms: 33.3 % under (95 % interval 1.96 to 2.04 ms)" in faster.reason
    near = landed({"latency_ms": 1.95, "batch": 16}, told)
    assert near is not None and near.status == "inconclusive", "1.96 to 2.04 ms holds 1.95 and three percent"
    conditions["others_busy_pct"] = 40.0
    for target, status in ((2.0, "pass"), (1.5, "fail")):
        busy = landed({"latency_ms": target, "batch": 16}, told)
        assert busy is not None and busy.status == status
        assert "other processes took 40 % of the cores" in busy.reason


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_stopwatch_tells_two_networks_apart(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(latency, "COMPARED_LIMIT_S", 3.0)
    slow = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.LazyLinear(2))
    fast = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    for network in (slow, fast):
        network(torch.zeros(1, 1, 16, 16))
    compared = Stopwatch((1, 16, 16), batch=8, backend=backend, threads=1).compared(slow, fast)
    told = compared.speedups[0]
    assert ("precision hint" in compared.settings[0]) == (backend == "openvino")
    assert told.verdict == "faster" and told.ratio > 1
    assert told.ci95[0] <= told.ratio <= told.ci95[1]


def test_the_check_must_see_the_accuracy_that_the_training_saw() -> None:
    demand_accuracy(0.9824, 0.9824, 397)
    demand_accuracy(0.9824, 0.9824 - 3 / 397, 397)
    with pytest.raises(UserError, match=r"scores 2\.50% on the test images, and did 98\.00% when it was trained"):
        demand_accuracy(0.98, 0.025, 397)
