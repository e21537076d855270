"""Plots of results: they show what the file holds, and those of the project are current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots
from benchmarks.tables import RESULTS

RUN: dict[str, Any] = {"method": "narrow", "amount": 0.2, "accuracy_pct": 70.0, "macs_pct": 20.0, "speedup": 3.0}
CURVE = [{"epoch": 1, "images_per_s": 100.0}, {"epoch": 2, "images_per_s": 200.0}]
POINTS: dict[str, list[dict[str, Any]]] = {
    "methods.cpu": [RUN, {**RUN, "accuracy_pct": 72.0}, {**RUN, "method": "dense", "amount": 1.0}],
    "training.cpu": [{"measured": "removals", "training": "demp", "time_s": 7.0, "curve": CURVE}],
}


@pytest.mark.parametrize("name, words", [("methods.cpu", ("narrow", "dense")), ("training.cpu", ("demp, 7 s in all",))])
def test_a_plot_names_what_it_shows_and_where_from(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"points": POINTS[name]}))
    text = plots.draw(path).read_text()
    assert all(word in text for word in words) and plots.title(path) in text


def test_names_stand_on_the_frontier_alone(tmp_path: Path) -> None:
    def run(method: str, cost: float, accuracy: float) -> dict[str, Any]:
        figures = {"macs_pct": cost, "openvino_batch_32_p50_ms": cost, "smallest_kib": cost, "accuracy_pct": accuracy}
        return {"kind": "channels", "method": method, "asked": "20 % of the MACs", **figures}

    points = [run("best", 10.0, 60.0), run("worse", 20.0, 50.0), run("large", 90.0, 70.0), run("large", 90.0, 72.0)]
    marks = [(p["macs_pct"], p["accuracy_pct"], p) for p in points]
    assert [mark[2]["method"] for mark in plots.frontier(marks)] == ["best", "large"]
    path = tmp_path / "methods_every.cpu.json"
    path.write_text(json.dumps({"points": [*points, {"method": "refuses", "asked": "", "refused": "no"}]}))
    text = plots.draw(path).read_text()
    assert text.count("best 20 %") == 3 and "worse" not in text and "refuses" not in text


@pytest.mark.parametrize("name", plots.DRAWN)
def test_plots_are_current(name: str) -> None:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        pytest.skip("not measured yet")
    assert plots.title(path) in path.with_suffix(".svg").read_text(), "run `python -m benchmarks.plots`"
