"""A run against the accepted release, on figures that the test sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.errors import UserError
from runtime.gate import Gate, Verdict
from runtime.gate.baseline import Baseline, Release, Rules, StoredFile
from runtime.gate.comparison import Measured, changes, demand_same_name, judge, latency_gate
from runtime.measure.latency import Comparison, Speedup
from runtime.measure.statistics import PairedAccuracy, paired_accuracy
from tests.runtime.gate.test_baseline import MODELS, release

GATE = {"name": "g", "status": "pass", "value": None, "limit": None, "reason": ""}
OWN = {"status": "pass", "gates": [GATE]}
QUIET = {"before": {"governor": None}, "others_busy_pct": 0.0, "stolen_pct": 0.0, "gpus": []}


def speed(ratio: float, half: float = 0.01, verdict: Any = "faster", conditions: Any = QUIET) -> Comparison:
    """Accepted p50 over the new one's, `half` of it the half-width of its interval."""
    one = Speedup(ratio, (ratio * (1 - half), ratio * (1 + half)), verdict, 1.05)
    return Comparison((), (one,), {}, (), conditions)


def accuracy(lost: int, n: int = 1000) -> PairedAccuracy:
    return paired_accuracy(np.ones(n, bool), np.arange(n) >= lost)


SAME = Measured({"onnxruntime.fp32.b32": speed(1.0)}, accuracy(0), 1.0)


def judged(
    new: Release | None = None, rules: Rules | None = None, own: Any = OWN, measured: Measured = SAME
) -> Verdict:
    stored = StoredFile(file="compact.0123456789ab.onnx", sha256="0" * 64)
    accepted = release(engines=["tensorrt.fp16.SM86"])
    baseline = Baseline(schema=2, name="digits", rules=rules or Rules(), release=accepted, files={"onnx": stored})
    return judge(new or accepted, own, baseline, measured)


def statuses(verdict: Verdict) -> dict[str, str]:
    return {gate.name.removeprefix("baseline."): gate.status for gate in verdict.gates}


def gate_of(verdict: Verdict, name: str) -> Gate:
    return next(gate for gate in verdict.gates if gate.name == name)


def with_figures(**figures: float) -> Release:
    return release(engines=["tensorrt.fp16.SM86"], figures=release().figures | figures)


def test_the_accepted_run_passes() -> None:
    verdict = judged()
    assert verdict.status == "pass"
    assert set(statuses(verdict)) == {
        "g", "data", "model", "engines", "params", "macs", "bytes", "accuracy", "latency.onnxruntime.fp32.b32"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "half", "status"),
    [
        (1.0, 0.01, "pass"),
        (2.0, 0.5, "pass"),  # the whole interval is faster
        (1 / 1.03, 0.01, "pass"),
        (1 / 1.045, 0.01, "inconclusive"),
        (1 / 1.055, 0.01, "inconclusive"),
        (1 / 1.07, 0.01, "fail"),
        (1 / 1.10, 0.02, "fail"),
        (1.0, 0.10, "inconclusive"),
    ],
)
def test_latency_by_one_ratio_one_interval_and_one_rule(ratio: float, half: float, status: str) -> None:
    gate = latency_gate("w", speed(ratio, half), 0.05)
    assert (gate.status, gate.value, gate.limit) == (status, 1 / ratio, 1.05)
    assert ("quieter machine" in gate.reason) == (status == "inconclusive")


def test_too_few_blocks_decide_nothing_and_a_busy_machine_is_only_said() -> None:
    short = latency_gate("w", speed(0.5, verdict="undecided"), 0.05)
    assert short.status == "inconclusive" and "raise check.time_limit_s" in short.reason
    busy = QUIET | {"others_busy_pct": 60.0}
    for ratio, status in ((1.0, "pass"), (0.8, "fail")):
        gate = latency_gate("w", speed(ratio, conditions=busy), 0.05)
        assert gate.status == status and "other processes took 60 % of the cores" in gate.reason


@pytest.mark.parametrize(("name", "most"), [("params", 1010), ("macs", 50_500), ("bytes", 104_096)])
def test_exact_figures_against_their_limits(name: str, most: int) -> None:
    assert judged(with_figures(**{name: float(most)})).status == "pass"
    verdict = judged(with_figures(**{name: most + 1.0}))
    assert [key for key, status in statuses(verdict).items() if status == "fail"] == [name]
    assert judged(with_figures(**{name: 1.0})).status == "pass"
    assert name not in statuses(judged(with_figures(**{name: most + 1.0}), Rules.model_validate({name: None})))


@pytest.mark.parametrize(
    ("lost", "n", "status", "words"),
    [
        (0, 1000, "pass", "1000 images"),
        (60, 1000, "fail", "6.00 points"),
        (15, 1000, "inconclusive", "1000 images cannot show that: about"),
        (0, 100, "inconclusive", "about 189 images"),  # z^2 / (n + z^2) is 2 % at 188.2
        (25, 1000, "inconclusive", "more images would not show it"),
    ],
)
def test_accuracy_by_the_interval_of_the_same_images(lost: int, n: int, status: str, words: str) -> None:
    gate = gate_of(judged(measured=Measured({}, accuracy(lost, n), 0.9)), "baseline.accuracy")
    assert gate.status == status and words in gate.reason and "90.0 % of them the same class" in gate.reason


def test_what_could_not_be_measured_is_inconclusive_with_the_reason() -> None:
    reasons = {"accuracy": "the images are gone", "tensorrt.fp16.SM86.b32": "no GPU"}
    verdict = judged(measured=Measured({}, None, None, reasons))
    assert verdict.status == "inconclusive"
    assert gate_of(verdict, "baseline.accuracy").reason.endswith("the images are gone")
    assert gate_of(verdict, "baseline.latency.tensorrt.fp16.SM86.b32").reason == "no GPU"
    without = judged(measured=Measured({}, None, None, reasons), rules=Rules(accuracy=None, latency=None))
    assert without.status == "pass"


def test_other_data_and_another_model_do_not_compare() -> None:
    data = release(engines=["tensorrt.fp16.SM86"], data={"source": "npz:B.npz", "fingerprint": "e" * 64})
    verdict = judged(data)
    assert statuses(verdict)["data"] == "inconclusive" and "npz:B.npz" in gate_of(verdict, "baseline.data").reason
    moved = release(engines=["tensorrt.fp16.SM86"], data={"source": "elsewhere", "fingerprint": "d" * 64})
    assert judged(moved).status == "pass", "the same bytes by another name"
    model = release(engines=["tensorrt.fp16.SM86"], model={"name": "demo:resnet", "args": {"width": 8}})
    assert [key for key, value in statuses(judged(model)).items() if value != "pass"] == ["model"]


def test_engines_that_vanish_fail_and_so_does_a_verdict_that_failed() -> None:
    gone = judged(release())
    assert [key for key, status in statuses(gone).items() if status == "fail"] == ["engines"]
    assert gate_of(gone, "baseline.engines").reason == "gone: tensorrt.fp16.SM86"
    hidden = judged(own={"status": "fail", "gates": []})
    assert hidden.status == "fail" and statuses(hidden)["verdict"] == "fail"
    assert judged(own={"status": "fail", "gates": [GATE | {"status": "fail"}]}).status == "fail"


def test_a_form_that_is_measured_no_more_is_inconclusive() -> None:
    fewer = release(engines=["tensorrt.fp16.SM86"], figures={"params": 1000.0, "macs": 5e4, "bytes": 1e5})
    verdict = judged(fewer)
    assert [key for key, value in statuses(verdict).items() if value != "pass"] == ["accuracy.simplified"]
    assert "was 0.99" in gate_of(verdict, "baseline.accuracy.simplified").reason


def test_limits_hold_whatever_the_baseline() -> None:
    limits = {"accuracy.simplified": 0.995, "macs": 60_000.0, "agreement": 0.9, "nothing": 1.0}
    verdict = judged(rules=Rules(limits=limits))
    found = {gate.name: gate.status for gate in verdict.gates if gate.name.startswith("limit.")}
    assert found == {
        "limit.accuracy.simplified": "fail", "limit.macs": "pass", "limit.agreement": "pass",
        "limit.nothing": "inconclusive",
    }  # fmt: skip


def test_changes_and_names() -> None:
    after = release(figures={"params": 900.0, "macs": 5e4, "bytes": 1e5, "accuracy.onnx": 0.9})
    assert changes(release(), after) == [
        "accuracy.onnx: new -> 0.9", "accuracy.simplified: 0.99 -> gone", "params: 1000 -> 900"
    ]  # fmt: skip
    assert len(changes(None, release())) == len(release().figures) == len(MODELS["compact"])
    stored = StoredFile(file="compact.0123456789ab.onnx", sha256="0" * 64)
    baseline = Baseline(schema=2, name="digits", release=release(), files={"onnx": stored})
    demand_same_name("digits", baseline)
    with pytest.raises(UserError, match="of 'digits', the run of 'other'"):
        demand_same_name("other", baseline)
