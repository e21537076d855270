"""Tables and plot of accuracy: every form with its interval, top-5 and metric, and the classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import accuracy
from pipeline.report.collect import Run, collect
from pipeline.report.page.numbers import GAP
from pipeline.report.render import render
from tests.pipeline.report.check_document import check
from tests.pipeline.report.reading import page, section
from tests.pipeline.report.run_folder import STAGES, write_run


def models() -> dict[str, Any]:
    """Compact before the cut is there too; the metric of fp16 is worse."""
    figures: dict[str, Any] = check()["models"]
    figures["compact"]["accuracy"] = {"masked": 0.99, **figures["compact"]["accuracy"]}
    for role, worse in (("dense", 0.0), ("compact", 0.25)):
        figures[role]["metric"] = {"torch": 0.75, "fp16": 0.75 - worse}
    return figures


def run_of(folder: Path) -> Run:
    return collect(write_run(folder / "run", models=models()))


def test_every_form_has_its_interval_top_5_and_metric(tmp_path: Path) -> None:
    report = run_of(tmp_path).report
    heads = accuracy.columns(report)
    assert heads == ["Dense", "Compact", "Top-5, dense", "Top-5, compact", "Metric, dense", "Metric, compact"]
    rows = {name: [figure.replace(GAP, " ") for figure in figures] for name, *figures in accuracy.forms(report)}
    assert list(rows) == ["torch, before the cut", "torch", "onnx", "simplified", "fp16"]
    assert rows["torch, before the cut"][0] == "-" and rows["torch, before the cut"][1].startswith("99.00 % (")
    both = ["99.50 % (98.2 to 99.9)", "98.99 % (97.4 to 99.6)"]
    assert rows["torch"] == [*both, "100.00 %", "100.00 %", "0.75", "0.75"]
    assert rows["fp16"][2:] == ["not measured", "not measured", "0.75", "0.5"]


def test_the_page_shows_them_and_the_form_that_lost_a_class(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", models=models())
    render(run)
    text = section(page(run).text, "Accuracy at every hop")
    assert "torch99.50 % (98.2 to 99.9)98.99 % (97.4 to 99.6)100.00 %100.00 %0.750.75" in text
    assert "eight40100.00 %95.00 %90.00 %, fp16" in text and "one35799.40 %99.40 %as in torch" in text


def test_accuracies_that_were_not_measured_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[Any] = []
    monkeypatch.setattr(accuracy, "intervals", lambda title, drawn, **rest: spans.extend(drawn))
    accuracy.accuracy_picture(collect(write_run(tmp_path / "run")).report)
    assert {span.row for span in spans} == {"torch", "onnx", "simplified", "fp16"}
    assert [span.role for span in spans] == ["dense"] * 4 + ["compact"] * 4
    assert all(span.low < span.value < span.high for span in spans)
    assert accuracy.accuracy_picture(collect(write_run(tmp_path / "early", STAGES[2:3])).report) is None


def test_wilson_interval_of_eight_in_ten(tmp_path: Path) -> None:
    """(0.490, 0.943), by Wilson's formula: centre (8 + 1.92) / 13.84, half width 1.96 * sqrt(1.6 + 0.96) / 13.84."""
    report = run_of(tmp_path).report
    paired = report.accuracy_difference
    assert paired
    few = replace(report, accuracy_difference=replace(paired, n=10))
    assert accuracy.wilson(few, 0.8) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert accuracy.wilson(replace(few, accuracy_difference=None), 0.8) is None
