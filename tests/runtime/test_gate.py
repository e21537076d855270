"""Every rule at its edges."""

from __future__ import annotations

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
    non_inferiority_gate,
    speedup_gate,
    target_gate,
    verdict,
)
from runtime.latency import Speedup
from runtime.paired import PairedAccuracy


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
    told = verdict(gate(status) for status in statuses)
    assert told.status == overall
    assert [each.status for each in told.gates] == statuses


def difference(points: float, low: float, high: float) -> PairedAccuracy:
    return PairedAccuracy(400, 9, 5, points, (low, high), 0.4)


@pytest.mark.parametrize(
    ("points", "status", "drop"), [(-1.0, "pass", 1.0), (-1.01, "fail", 1.01), (0.0, "pass", 0.0), (2.0, "pass", -2.0)]
)
def test_the_point_estimate_decides_on_accuracy(points: float, status: str, drop: float) -> None:
    told = accuracy_gate(difference(points, points - 2, points + 1.5), 1.0)
    assert (told.status, told.limit) == (status, 1.0)
    assert told.value == pytest.approx(drop)
    assert "400 images" in told.reason
    assert f"95 % interval {drop - 1.5:.2f} to {drop + 2:.2f}" in told.reason
    assert str(told.value) != "-0.0"


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
    told = speedup_gate(Speedup(ratio, (low, high), "faster", 1.05), limit, "ONNX Runtime, batch 32")
    assert told.status == status
    assert (told.value, told.limit) == (ratio, limit)
    assert "ONNX Runtime, batch 32" in told.reason
    assert ("quieter machine" in told.reason) == (status == "inconclusive")


@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_a_speedup_that_rests_on_too_little_is_inconclusive(ratio: float) -> None:
    told = speedup_gate(Speedup(ratio, (ratio, ratio), "faster", 1.05), 1.5, "b32", doubt="5 of 30 blocks")
    assert (told.status, told.value) == ("inconclusive", ratio)
    assert told.reason.endswith("; 5 of 30 blocks")


def test_a_limit_of_0_asks_for_nothing_whatever_the_machine_did() -> None:
    speedup = Speedup(0.5, (0.4, 0.6), "slower", 1.05)
    doubt = disturbance(["other processes took 48 % of the cores"])
    told = speedup_gate(speedup, 0.0, "b32", doubt=doubt)
    assert (told.status, told.value) == ("pass", 0.5) and "disturbed" not in told.reason
    assert speedup_gate(speedup, 1e-9, "b32", doubt=doubt).status == "inconclusive"


def test_a_disturbance_is_told_with_its_remedy() -> None:
    told = disturbance(["other processes took 48 % of the cores", "L4 was throttled: power limit"])
    assert told.startswith("the machine was disturbed (other processes took 48 % of the cores, L4 was throttled: ")
    assert told.endswith("): measure again on a quiet one")
    assert disturbance([]) == ""


@pytest.mark.parametrize(("value", "status"), [(0.0, "pass"), (1e-5, "pass"), (1.1e-5, "fail")])
def test_the_difference_of_the_cut(value: float, status: str) -> None:
    told = difference_gate(value, 1e-5)
    assert told.status == status
    assert f"{value:.2e}" in told.reason


def test_what_was_not_measured_is_inconclusive_and_says_why() -> None:
    for told in (
        accuracy_gate(None, 1.0, "no test split"),
        speedup_gate(None, 1.5, "b32", "no test split"),
        difference_gate(None, 1e-5, "no test split"),
    ):
        assert (told.status, told.value, told.reason) == ("inconclusive", None, "no test split")
        assert told.limit is not None


def test_engines() -> None:
    assert engines_gate(4, []) == Gate("engines", "pass", 4, 4, "all 4 engines built")
    assert engines_gate(0, []).status == "pass"
    told = engines_gate(2, ["no TensorRT", "no TensorRT", "no GPU"])
    assert (told.status, told.value, told.limit) == ("inconclusive", 2, 5)
    assert told.reason == "2 of 5 engines built: no TensorRT; no GPU"


@pytest.mark.parametrize(
    ("ci95", "status"), [((-0.9, 0.5), "pass"), ((-1.4, 0.5), "inconclusive"), ((-3.0, -1.1), "fail")]
)
def test_non_inferiority_needs_the_whole_interval(ci95: tuple[float, float], status: str) -> None:
    difference = PairedAccuracy(400, 3, 1, -0.5, ci95, 0.6)
    gate = non_inferiority_gate(difference, 1.0)
    assert gate.status == status and gate.value == pytest.approx(-ci95[0])
    assert ("400 images cannot tell" in gate.reason) == (status == "inconclusive")
    assert non_inferiority_gate(None, 1.0, "not measured").status == "inconclusive"


def test_the_first_hop_beyond_the_limit_is_named() -> None:
    gate = hops_gate([("masked", 0.2), ("simplified to fp16", 1.5), ("fp16 to engine", 4.0)], 1.0)
    assert (gate.status, gate.value) == ("fail", 4.0)
    assert gate.reason.startswith("simplified to fp16 is the first hop beyond the limit: 1.50 points lost")
    fine = hops_gate([("masked", -0.3), ("masked to torch", 0.25)], 1.0)
    assert (fine.status, fine.value) == ("pass", 0.25) and "none loses more than 0.25 points" in fine.reason
    assert hops_gate([], 1.0).status == "inconclusive"


def test_a_metric_of_ones_own() -> None:
    assert metric_gate("f1", 0.9, 0.88, 0.03).status == "pass"
    gate = metric_gate("f1", 0.9, 0.8, 0.03)
    assert gate.status == "fail" and gate.value == pytest.approx(0.1) and "0.8 against 0.9" in gate.reason
    assert metric_gate("f1", None, 0.8, 0.03, "not measured").status == "inconclusive"


@pytest.mark.parametrize(
    ("asked", "reached", "status", "told"),
    [
        (0.35, 0.36, "pass", "share of MACs 0.36, asked for 0.35: 2.9 % over"),
        (0.35, 0.3395, "pass", "share of MACs 0.34, asked for 0.35: 3.0 % under"),
        (0.35, 0.338, "fail", "share of MACs 0.338, asked for 0.35: 3.4 % under"),
        (0.35, 0.42, "fail", "share of MACs 0.42, asked for 0.35: 20.0 % over"),
    ],
)
def test_a_target_is_met_within_three_percent(asked: float, reached: float, status: str, told: str) -> None:
    gate = target_gate("share of MACs", asked, reached)
    assert (gate.name, gate.status, gate.value, gate.limit) == ("target", status, reached, asked)
    assert gate.reason == told


@pytest.mark.parametrize(
    ("ci95", "status"),
    [((1.9, 2.0), "fail"), ((1.9, 2.07), "fail"), ((1.9, 2.08), "inconclusive"), ((2.0, 2.5), "inconclusive")],
)
def test_a_latency_off_its_target_is_undecided_where_its_interval_holds_it(
    ci95: tuple[float, float], status: str
) -> None:
    gate = target_gate("batch 1", 2.14, 2.0, " ms", ci95)
    assert gate.status == status and f"95 % interval {ci95[0]:.3g} to {ci95[1]:.3g} ms" in gate.reason
    assert target_gate("batch 1", 2.05, 2.0, " ms", ci95).status == "pass"
