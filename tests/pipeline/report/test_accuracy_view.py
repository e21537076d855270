"""Tables of accuracy: every form with its interval, top-5 and metric, and the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.report import accuracy_view
from pipeline.report.collect import collect
from pipeline.report.numbers import GAP
from pipeline.report.render import render
from pipeline.report.schema import Report
from tests.pipeline.report.check_document import check
from tests.pipeline.report.page import page, section
from tests.pipeline.report.run_folder import write_run


def models() -> dict[str, Any]:
    """Compact before the cut is there too; the metric of fp16 is worse."""
    told: dict[str, Any] = check()["models"]
    told["compact"]["accuracy"] = {"masked": 0.99, **told["compact"]["accuracy"]}
    for role, worse in (("dense", 0.0), ("compact", 0.25)):
        told[role]["metric"] = {"torch": 0.75, "fp16": 0.75 - worse}
    return told


def report(folder: Path) -> Report:
    return collect(write_run(folder / "run", models=models())).report


def test_every_form_has_its_interval_top_5_and_metric(tmp_path: Path) -> None:
    told = report(tmp_path)
    heads = accuracy_view.columns(told)
    assert heads == ["Dense", "Compact", "Top-5, dense", "Top-5, compact", "Metric, dense", "Metric, compact"]
    found = {row.name: [figure.replace(GAP, " ") for figure in row.figures] for row in accuracy_view.forms(told)}
    assert list(found) == ["torch, before the cut", "torch", "onnx", "simplified", "fp16"]
    assert found["torch, before the cut"][0] == "-" and found["torch, before the cut"][1].startswith("99.00 % (")
    assert found["torch"] == [
        "99.50 % (98.2 to 99.9)",
        "98.99 % (97.4 to 99.6)",
        "100.00 %",
        "100.00 %",
        "0.75",
        "0.75",
    ]
    assert found["fp16"][2:] == ["not measured", "not measured", "0.75", "0.5"]


def test_a_class_names_the_form_that_lost_it(tmp_path: Path) -> None:
    told = report(tmp_path)
    eight, one = accuracy_view.classes(told)
    assert [figure.replace(GAP, " ") for figure in eight.figures] == ["40", "100.00 %", "95.00 %", "90.00 %, fp16"]
    assert one.figures[-1] == "as in torch"
    assert accuracy_view.class_heads(told)[-1] == "Compact at its lowest"
    without = told.model_copy(update={"classes": [entry.model_copy(update={"forms": {}}) for entry in told.classes]})
    assert accuracy_view.class_heads(without) == ["Images", "Dense", "Compact"]
    assert all(len(row.figures) == 3 for row in accuracy_view.classes(without))


def test_the_page_shows_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", models=models())
    render(run)
    text = section(page(run).text, "Accuracy at every hop")
    assert "torch99.50 % (98.2 to 99.9)98.99 % (97.4 to 99.6)100.00 %100.00 %0.750.75" in text
    assert "eight40100.00 %95.00 %90.00 %, fp16" in text
