"""The quickstart's benchmark: points out of a report, and the promises they are held to."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quickstart import main, points_of, promises, wait_for_quiet
from runtime.errors import EXIT_USAGE, UserError

LAW = {"max_rel_diff": 1e-15}


def report(metric: str = "accuracy") -> dict[str, Any]:
    def model(accuracy: float, macs: int) -> dict[str, Any]:
        figures = {"params": macs // 100, "macs": macs, "channels": macs // 1000, "bytes": macs // 2}
        return {**figures, "accuracy": {"torch": 0.0, "simplified": accuracy}}

    def latency(dense: float, compact: float) -> dict[str, Any]:
        speedup = {"ratio": dense / compact, "ci95": [dense / compact - 0.25, dense / compact + 0.25]}
        return {
            "dense": {"p50_ms": dense, "best_ms": dense / 2},
            "compact": {"p50_ms": compact, "best_ms": compact / 2},
            "speedup": speedup,
        }

    return {
        "metric_name": metric,
        "models": {"dense": model(0.99, 1_000_000), "compact": model(0.985, 400_000)},
        "latency": {"onnxruntime": {"fp32": {"b1": latency(1.0, 1.0), "b32": latency(4.0, 2.0)}}},
        "surgery": {"channels_before": 1000, "channels_dead": 500, "max_abs_diff": 5e-6, "law": LAW},
        "stages": [{"folder": "10-dense", "seconds": 3.0}, {"folder": "20-sparse", "seconds": 4.0}],
        "verdict": {"status": "pass"},
    }


def test_points_of_a_report() -> None:
    dense, compact = points_of(report(), 7, 60.0)
    assert dense == {
        "model": "dense",
        "seed": 7,
        "accuracy_pct": 99.0,
        "params": 10_000,
        "macs": 1_000_000,
        "channels": 1000,
        "onnx_kib": 500_000 / 1024,
        "training_s": 3.0,
        "batch_1_p50_ms": 1.0,
        "batch_1_best_ms": 0.5,
        "batch_32_p50_ms": 4.0,
        "batch_32_best_ms": 2.0,
    }
    assert (compact["dead_channels_pct"], compact["macs_of_dense_pct"], compact["run_s"]) == (50.0, 40.0, 60.0)
    assert compact["drop_pp"] == pytest.approx(0.5)
    assert (compact["batch_32_speedup_low"], compact["batch_32_speedup"], compact["batch_32_speedup_high"]) == (
        1.75,
        2.0,
        2.25,
    )
    assert compact["training_s"] == 4.0


@pytest.mark.parametrize(
    ("figure", "value", "broken"),
    [
        ("dead_channels_pct", 44.9, "at least 45 % of the channels dead"),
        ("macs_of_dense_pct", 50.1, "at most half of the MACs"),
        ("drop_pp", 1.01, "accuracy within 1.0 point"),
        ("batch_32_speedup", 1.49, "batch 32 at least 1.5x faster"),
        ("batch_32_speedup_low", 1.0, "its confidence interval above 1 with every seed"),
        ("max_abs_diff", 1.1e-5, "compact equal to 1e-5 with every seed"),
    ],
)
def test_each_promise_can_be_broken(figure: str, value: float, broken: str) -> None:
    points = points_of(report(), 0, 60.0)
    assert all(promises(points).values())
    points[1][figure] = value
    assert [text for text, whether in promises(points).items() if not whether] == [broken]


@pytest.mark.parametrize(
    ("figure", "value", "broken"),
    [
        ("drop_pp", 1.01, "mAP50 within 1.0 point"),
        ("batch_32_speedup", 1.99, "batch 32 at least 2x faster"),
        ("batch_32_speedup_low", 1.0, "its confidence interval above 1 with every seed"),
        ("law_rel_diff", 1.1e-9, "the law within 1e-9 with every seed"),
    ],
)
def test_each_promise_of_another_task_can_be_broken(figure: str, value: float, broken: str) -> None:
    points = points_of(report("mAP50"), 0, 60.0)
    assert points[0]["mAP50_pct"] == 99.0 and all(promises(points).values())
    points[1][figure] = value
    assert [text for text, whether in promises(points).items() if not whether] == [broken]


def test_a_busy_machine_is_waited_for_and_then_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = iter([80.0, 60.0, 4.0])
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: next(shares))
    assert wait_for_quiet(10.0, patience_s=60.0) == 4.0
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 80.0)
    with pytest.raises(UserError, match="other programs keep 80 % of the processor busy; at most 10 %"):
        wait_for_quiet(10.0, patience_s=0.0)
    assert main(["--patience-s", "0"]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith("error: other programs keep 80 %")
