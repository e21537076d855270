"""Which figures of a run become which plot."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import pictures, plots, speed_plots
from pipeline.report.collect import collect
from pipeline.report.view import Source, wilson
from tests.pipeline.report.run_folder import STAGES, write_run


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return collect(write_run(tmp_path / "run"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the plots are given, by name; nothing is drawn."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(plots, "intervals", lambda spans, **rest: given.update(spans=spans, **rest))
    return given


def test_speedups_carry_their_interval_and_the_limit_of_the_gate(source: Source, drawn: dict[str, Any]) -> None:
    pictures.speedup_picture(source.report)
    assert [(span.value, span.low, span.high) for span in drawn["spans"]] == [
        (1.31, 1.27, 1.36),
        (1.6, 1.56, 1.65),
        (0.99, 0.95, 1.04),
    ]
    assert drawn["marks"] == [(1.0, "same"), (1.5, "gate")]


def test_accuracies_that_were_not_measured_are_not_drawn(source: Source, drawn: dict[str, Any]) -> None:
    pictures.accuracy_picture(source.report)
    assert {span.row for span in drawn["spans"]} == {"torch", "onnx", "simplified", "fp16"}
    assert [span.role for span in drawn["spans"]] == ["dense"] * 4 + ["compact"] * 4
    assert all(span.low < span.value < span.high for span in drawn["spans"])


def test_shares_of_dense_with_the_interval_of_the_latency(source: Source, drawn: dict[str, Any]) -> None:
    pictures.share_picture(source)
    latency, macs, *_ = drawn["spans"]
    assert (latency.value, latency.low, latency.high) == pytest.approx((62.5, 100 / 1.65, 100 / 1.56))
    assert (macs.row, macs.value, macs.low) == ("MACs", 25.0, None)
    assert drawn["marks"] == [(100.0, "dense")]


def test_speed_plots_get_samples_sweep_and_layers(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(speed_plots, "distributions", lambda samples: given.update(samples=samples))
    monkeypatch.setattr(speed_plots, "sweep", lambda batches, speeds: given.update(batches=batches, speeds=speeds))
    monkeypatch.setattr(speed_plots, "layers", lambda bars: given.update(bars=bars))
    pictures.distribution_picture(source)
    pictures.sweep_picture(source)
    pictures.layers_picture(source.report.why[0])
    assert min(given["samples"]["dense"]) == pytest.approx(1.83 * 0.97) and len(given["samples"]["compact"]) == 13
    assert given["batches"] == [1, 32] and given["speeds"]["dense"] == pytest.approx([1000 / 0.21, 32_000 / 1.83])
    assert [(bar.layer, bar.dense, bar.compact, bar.floor) for bar in given["bars"]] == [
        ("stem.conv", 300.0, 200.0, 40.0), ("layer3", 500.0, 400.0, 350.0),
    ]  # fmt: skip


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    given = [("a", 3.0, 99.0), ("b", 1.0, 97.0), ("c", 2.0, 96.0), ("d", 2.5, 98.0), ("e", 4.0, 99.0)]
    dots = [speed_plots.Dot(label, "compact", ms, accuracy, None) for label, ms, accuracy in given]
    assert [dot.label for dot in speed_plots.frontier(dots)] == ["b", "d", "a"]
    assert speed_plots.frontier([]) == []
    drawn = speed_plots.pareto(dots, "p50, ms")
    assert drawn.light_wide.startswith("data:image/svg+xml;base64,") and "table" in drawn.alt
    same = speed_plots.pareto([dots[0], dots[0], dots[1]], "p50, ms").light_wide.partition(",")[2]
    assert b">1, 2</text>" in base64.b64decode(same)  # in one place, one label


def test_wilson_interval_of_eight_in_ten(source: Source) -> None:
    """(0.490, 0.943), by Wilson's formula: centre (8 + 1.92) / 13.84, half width 1.96 * sqrt(1.6 + 0.96) / 13.84."""
    paired = source.report.accuracy_difference
    assert paired
    few = source.report.model_copy(update={"accuracy_difference": paired.model_copy(update={"n": 10})})
    assert wilson(few, 0.8) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(few.model_copy(update={"accuracy_difference": None}), 0.8) is None


def test_nothing_to_draw_is_no_picture(tmp_path: Path) -> None:
    early = collect(write_run(tmp_path / "early", STAGES[2:3]))
    assert pictures.accuracy_picture(early.report) is None and pictures.speedup_picture(early.report) is None
