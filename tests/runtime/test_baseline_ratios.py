"""Ratios that were measured in one job: to a reference model, and on devices that the baseline does not know."""

from __future__ import annotations

import pytest

from runtime.baseline import judge, updated
from tests.runtime.test_baseline import Report, entry_of, report, statuses


def with_reference(ratio: float, low: float, high: float, sha256: str = "ab" * 32) -> Report:
    document = report()
    speedup = {"ratio": ratio, "ci95": [low, high]}
    return {**document, "reference": {"batch": 32, "sha256": sha256, "speedup": speedup}}


@pytest.mark.parametrize(
    ("ratio", "low", "high", "status"),
    [(1.46, 1.4, 1.5, "pass"), (1.4, 1.3, 1.45, "inconclusive"), (1.3, 1.25, 1.35, "fail"), (2.0, 1.9, 2.1, "pass")],
)
def test_the_ratio_to_a_reference_model(ratio: float, low: float, high: float, status: str) -> None:
    """1.5 less 5 % is 1.425."""
    baseline = updated(with_reference(1.5, 1.45, 1.55), None)
    verdict = judge(with_reference(ratio, low, high), baseline)
    assert statuses(verdict)["reference.b32"] == status
    assert verdict.status == status


def test_another_reference_model_is_not_compared() -> None:
    baseline = updated(with_reference(1.5, 1.45, 1.55), None)
    for document in (with_reference(1.5, 1.45, 1.55, sha256="cd" * 32), report()):
        verdict = judge(document, baseline)
        assert statuses(verdict)["reference.b32"] == "inconclusive"
        assert "another reference model" in next(g.reason for g in verdict.gates if g.name == "baseline.reference.b32")


@pytest.mark.parametrize(("ratio", "status"), [(2.0, "pass"), (1.5, "fail")])
def test_ratios_hold_on_any_device_where_the_rules_say_so(ratio: float, status: str) -> None:
    """Without a rule for absolute latency nothing is left that cannot be compared."""
    kept = updated(report(), None)
    document = report()
    document["environment"] = {"fingerprint": "bbbb", "cpu": "CPU B", "cores": 8}
    entry_of(document)["speedup"] = {"ratio": ratio, "ci95": [ratio - 0.05, ratio + 0.05]}
    rules = kept.rules.model_copy(update={"ratios_on": "any device", "p50_ms": None})
    verdict = judge(document, kept.model_copy(update={"rules": rules}))
    assert (statuses(verdict)["device"], statuses(verdict)["speedup.onnxruntime.fp32.b32"]) == ("pass", status)
    assert verdict.status == status
    absolute = kept.rules.model_copy(update={"ratios_on": "any device"})
    told = judge(document, kept.model_copy(update={"rules": absolute}))
    assert statuses(told)["device"] == "inconclusive" and statuses(told)["speedup.onnxruntime.fp32.b32"] == status
    assert "speedup.onnxruntime.fp32.b32" not in statuses(judge(document, kept))
