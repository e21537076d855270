"""Every rule at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.gate import (
    Gate,
    Status,
    accuracy_gate,
    difference_gate,
    disturbance,
    engines_gate,
    hops_gate,
    metric_gate,
    speedup_gate,
    target_gate,
    verdict,
)
from runtime.measure.latency import Speedup
from runtime.measure.statistics import PairedAccuracy, paired_accuracy


def gate(status: Status) -> Gate:
    return Gate("g", status, None, None, "")


@pytest.mark.parametrize(
    ("statuses", "overall"),
    [
        ([], "inconclusive"),
        (["pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
    ],
)
def test_the_worst_gate_decides(statuses: list[Status], overall: str) -> None:
    ruling = verdict(gate(status) for status in statuses)
    assert ruling.status == overall
    assert [each.status for each in ruling.gates] == statuses


def difference(points: float, low: float, high: float) -> PairedAccuracy:
    return PairedAccuracy(400, 9, 5, points, (low, high), 0.4)


@pytest.mark.parametrize(
    ("points", "low", "high", "status"),
    [
        (0.0, -1.0, 1.0, "pass"),
        (2.0, -0.5, 3.0, "pass"),
        (0.0, -1.01, 1.0, "inconclusive"),
        (-1.0, -3.0, 0.5, "inconclusive"),
        (-2.0, -3.0, -1.0, "inconclusive"),
        (-2.0, -3.0, -1.01, "fail"),
    ],
)
def test_the_whole_interval_decides_on_accuracy(points: float, low: float, high: float, status: str) -> None:
    gate = accuracy_gate(difference(points, low, high), 1.0)
    assert gate.status == status and gate.value == pytest.approx(-points) and gate.limit == 1.0
    assert "400 images" in gate.reason and f"95 % interval {0 - high:.2f} to {0 - low:.2f}" in gate.reason
    assert ("400 images cannot show that" in gate.reason) == (status == "inconclusive")
    assert str(gate.value) != "-0.0"


def test_too_few_images_says_how_many_are_needed() -> None:
    """Without an image that differs the interval ends at z^2 / (n + z^2): within 1 point from 381 images on."""
    same = paired_accuracy(np.ones(380, bool), np.ones(380, bool))
    assert accuracy_gate(same, 1.0).reason.endswith("380 images cannot show that: about 381 images like these could")
    assert accuracy_gate(paired_accuracy(np.ones(381, bool), np.ones(381, bool)), 1.0).status == "pass"


def test_an_untrained_pair_is_named() -> None:
    gate = accuracy_gate(difference(0.0, -0.1, 0.1), 1.0, untrained="both networks are no better than chance")
    assert gate.status == "inconclusive" and gate.reason.endswith("; both networks are no better than chance")
    assert accuracy_gate(difference(0.0, -0.1, 0.1), 100.0, untrained="chance").status == "pass", "asks for nothing"


@pytest.mark.parametrize(
    ("ratio", "low", "high", "limit", "status"),
    [
        (2.0, 1.9, 2.1, 1.5, "pass"),
        (1.6, 1.4, 1.8, 1.5, "pass"),  # the interval needs to clear 1, not the limit
        (1.5, 1.01, 1.9, 1.5, "pass"),
        (1.6, 1.0, 2.2, 1.5, "inconclusive"),
        (1.6, 0.9, 2.2, 1.5, "inconclusive"),
        (1.45, 1.3, 1.5, 1.5, "inconclusive"),
        (1.45, 1.3, 1.49, 1.5, "fail"),
        (0.8, 0.7, 0.9, 1.5, "fail"),
        (0.95, 0.92, 0.98, 0.9, "pass"),  # a limit below 1 allows to be slower
        (0.95, 0.89, 0.98, 0.9, "inconclusive"),
        (0.5, 0.4, 0.6, 0.0, "pass"),  # a limit of 0 asks for nothing
    ],
)
def test_the_speedup_and_its_interval(ratio: float, low: float, high: float, limit: float, status: str) -> None:
    ruling = speedup_gate(Speedup(ratio, (low, high), "faster", 1.05), limit, "ONNX Runtime, batch 32")
    assert ruling.status == status
    assert (ruling.value, ruling.limit) == (ratio, limit)
    assert "ONNX Runtime, batch 32" in ruling.reason
    assert ("quieter machine" in ruling.reason) == (status == "inconclusive")


@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_a_speedup_that_was_measured_too_shortly_is_inconclusive(ratio: float) -> None:
    gate = speedup_gate(Speedup(ratio, (ratio, ratio), "undecided", 1.05), 1.5, "b32")
    assert (gate.status, gate.value) == ("inconclusive", ratio)
    assert gate.reason.endswith("; too few blocks: raise check.time_limit_s")
    assert speedup_gate(Speedup(ratio, (ratio, ratio), "undecided", 1.05), 0.0, "b32").status == "pass"


@pytest.mark.parametrize(("ratio", "status"), [(0.5, "fail"), (3.0, "pass")])
def test_what_disturbed_the_machine_is_said_and_decides_nothing(ratio: float, status: str) -> None:
    note = disturbance(["other processes took 48 % of the cores", "L4 was throttled: power limit"])
    gate = speedup_gate(Speedup(ratio, (ratio, ratio), "faster", 1.05), 1.5, "b32", note=note)
    assert gate.status == status
    assert gate.reason.endswith("; the machine was disturbed (other processes took 48 % of the cores, "
                                "L4 was throttled: power limit)")  # fmt: skip
    assert disturbance([]) == ""


@pytest.mark.parametrize(("value", "status"), [(0.0, "pass"), (1e-5, "pass"), (1.1e-5, "fail")])
def test_the_difference_of_the_cut(value: float, status: str) -> None:
    ruling = difference_gate(value, 1e-5)
    assert ruling.status == status
    assert f"{value:.2e}" in ruling.reason


def test_what_was_not_measured_is_inconclusive_and_says_why() -> None:
    for ruling in (
        accuracy_gate(None, 1.0, "no test split"),
        speedup_gate(None, 1.5, "b32", "no test split"),
        difference_gate(None, 1e-5, "no test split"),
    ):
        assert (ruling.status, ruling.value, ruling.reason) == ("inconclusive", None, "no test split")
        assert ruling.limit is not None


def test_engines() -> None:
    assert engines_gate(4, []) == Gate("engines", "pass", 4, 4, "all 4 engines built")
    assert engines_gate(0, []).status == "pass"
    ruling = engines_gate(2, ["no TensorRT", "no TensorRT", "no GPU"])
    assert (ruling.status, ruling.value, ruling.limit) == ("inconclusive", 2, 5)
    assert ruling.reason == "2 of 5 engines built: no TensorRT; no GPU"


def test_the_first_hop_beyond_the_limit_is_named() -> None:
    fine, doubtful, broken = difference(-0.2, -0.5, 0.1), difference(-0.8, -2.0, 0.4), difference(-4.0, -5.0, -3.0)
    gate = hops_gate([("masked", fine), ("simplified to fp16", broken), ("fp16 to engine", broken)], 1.0)
    assert (gate.status, gate.value) == ("fail", 4.0)
    assert gate.reason.startswith("simplified to fp16 is the first hop beyond the limit: it loses 4.00 points")
    assert hops_gate([("a", doubtful), ("b", broken)], 1.0).reason.startswith("b is the first hop")
    gate = hops_gate([("masked", fine), ("fp16", doubtful)], 1.0)
    assert (gate.status, gate.value) == ("inconclusive", 0.8) and gate.reason.startswith("fp16 is undecided: it loses")
    gate = hops_gate([("masked", difference(0.3, 0.1, 0.4)), ("masked to torch", fine)], 1.0)
    assert (gate.status, gate.value) == ("pass", 0.2) and "none loses more than 0.20 points" in gate.reason
    assert hops_gate([], 1.0).status == "inconclusive"


def test_a_metric_of_ones_own() -> None:
    assert metric_gate("f1", 0.9, 0.88, 0.03).status == "pass"
    gate = metric_gate("f1", 0.9, 0.8, 0.03)
    assert gate.status == "fail" and gate.value == pytest.approx(0.1) and "0.8 against 0.9" in gate.reason
    assert metric_gate("f1", None, 0.8, 0.03, "not measured").status == "inconclusive"


@pytest.mark.parametrize(
    ("target", "reached", "status", "reason"),
    [
        (0.35, 0.36, "pass", "share of MACs 0.36, target 0.35: 2.9 % over"),
        (0.35, 0.338, "pass", "share of MACs 0.338, target 0.35: 3.4 % under"),
        (0.35, 0.10, "pass", "share of MACs 0.1, target 0.35: 71.4 % under"),
        (0.35, 0.42, "fail", "share of MACs 0.42, target 0.35: 20.0 % over"),
    ],
)
def test_a_target_is_met_by_what_is_smaller_or_three_percent_over(
    target: float, reached: float, status: str, reason: str
) -> None:
    gate = target_gate("share of MACs", target, reached)
    assert (gate.name, gate.status, gate.value, gate.limit) == ("target", status, reached, target)
    assert gate.reason == reason


@pytest.mark.parametrize(
    ("ci95", "status"), [((1.9, 2.06), "pass"), ((1.9, 2.07), "inconclusive"), ((2.07, 2.5), "fail")]
)
def test_a_latency_meets_its_target_by_its_whole_interval(ci95: tuple[float, float], status: str) -> None:
    gate = target_gate("batch 1", 2.0, 2.05, " ms", ci95, "the machine was disturbed")
    assert gate.status == status and f"95 % interval {ci95[0]:.3g} to {ci95[1]:.3g} ms" in gate.reason
    assert gate.reason.endswith("; the machine was disturbed")
