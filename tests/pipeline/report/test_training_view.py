"""What the report shows of a training: the figures of history.jsonl, as plots and as tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import training_plots, training_view
from pipeline.report.plots import PALETTE
from pipeline.report.training_plots import Curve, Deaths, Line, Panel
from pipeline.report.training_view import read_history
from runtime.errors import UserError
from tests.pipeline.report.run_folder import BEFORE, DEAD, write_history
from tests.pipeline.report.test_plots import svg, words

CURVE = Curve("dense", "dense", [1, 2, 3], [50.0, 80.0, 90.0], [None, None, None])
DYING = Curve("DemP", "compact", [1, 2, 3], [40.0, 75.0, 89.0], [0.0, 20.0, 45.0])
ROWS: list[dict[str, Any]] = [
    {
        "epoch": 1, "loss": 2.0, "accuracy": 0.5, "lr": 0.1, "seconds": 1.0, "images_per_s": 100.0, "macs": 1000,
        "lambda": 0.01, "sigma": 1e-5, "dead": None, "channels": 12, "dead_by_layer": None, "removals": [],
        "removed_by_layer": {"a": 0, "b": 0}, "channels_by_layer": {"a": 8, "b": 4},
    },
    {
        "epoch": 2, "loss": 1.0, "accuracy": 0.75, "lr": 0.1, "seconds": 1.0, "images_per_s": 300.0, "macs": 600,
        "lambda": 0.04, "sigma": 2e-5, "dead": 6, "channels": 12, "dead_by_layer": {"a": 4, "b": 2},
        "removals": [{"channels": 2}, {"channels": 1}],
        "removed_by_layer": {"a": 2, "b": 1}, "channels_by_layer": {"a": 8, "b": 4},
    },
]  # fmt: skip


@pytest.fixture
def demp(tmp_path: Path) -> list[training_view.Epoch]:
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return read_history(tmp_path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the plots are given, by name; nothing is drawn."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(training_plots, "training", lambda curves: given.update(curves=curves))
    monkeypatch.setattr(training_plots, "course", lambda panels: given.update({p.axis: p for p in panels}))
    monkeypatch.setattr(training_plots, "deaths", lambda epochs, layers: given.update(epochs=epochs, layers=layers))
    return given


def test_an_epoch_is_a_line_of_the_history(demp: list[training_view.Epoch]) -> None:
    assert [e.epoch for e in demp] == [1, 2] and [e.penalty for e in demp] == [0.01, 0.04]
    assert [e.removed for e in demp] == [0, 3]
    assert demp[0].dead_by_layer == {} and demp[1].dead_by_layer == {"a": 4, "b": 2}


def test_a_training_that_did_not_run_has_no_epochs_and_no_pictures(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    assert training_view.accuracy_picture([], []) is None and training_view.course_picture([], []) is None
    assert training_view.layers_picture([]) is None and training_view.layer_rows([]) == []


@pytest.mark.parametrize(
    "line", ["{", "[1]", "{}", '{"epoch": 1, "removals": [{}]}', '{"epoch": 1, "dead_by_layer": 3}', "[" * 9999]
)
def test_a_damaged_history_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "history.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"history\.jsonl"):
        read_history(tmp_path)


def test_a_history_too_long_to_be_one_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_view, "HISTORY_BYTES", 20)
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\n')
    assert [epoch.epoch for epoch in read_history(tmp_path)] == [1]
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\n' * 2)
    with pytest.raises(UserError, match="over 20 bytes"):
        read_history(tmp_path)


def test_accuracy_and_deaths_are_percent(tmp_path: Path, drawn: dict[str, Any]) -> None:
    for name, deaths in (("dense", False), ("demp", True)):
        (tmp_path / name).mkdir()
        write_history(tmp_path / name / "history.jsonl", deaths=deaths)
    training_view.accuracy_picture(read_history(tmp_path / "dense"), read_history(tmp_path / "demp"))
    dense, demp = drawn["curves"]
    assert (dense.label, demp.label) == ("dense", "DemP") and list(demp.epochs) == list(range(1, 41))
    assert demp.dead[0] == pytest.approx(100 * 6 / BEFORE) and demp.dead[-1] == pytest.approx(100 * DEAD / BEFORE)
    assert set(dense.dead) == {None} and 98 < dense.accuracy[-1] < 100


def test_the_course_has_every_figure_in_the_unit_of_its_axis(
    demp: list[training_view.Epoch], drawn: dict[str, Any]
) -> None:
    training_view.course_picture([], demp)
    assert list(drawn["loss"].lines[0].values) == [2.0, 1.0] and drawn["loss"].log
    penalty, sigma = drawn["lambda and sigma, % of their peaks"].lines
    assert penalty.label == "lambda, peak 0.04" and list(penalty.values) == [25.0, 100.0]
    assert sigma.label == "sigma, peak 2e-05" and list(sigma.values) == [50.0, 100.0]
    assert list(drawn["MACs an image, % of dense"].lines[0].values) == [100.0, 60.0]
    dead, removed = drawn["channels, %"].lines
    assert math.isnan(dead.values[0]) and dead.values[1] == 50.0
    assert list(removed.values) == [0.0, 25.0]
    assert list(drawn["images/s while training"].lines[0].values) == [100.0, 300.0]


def test_layers_show_their_share_of_deaths_and_removals(demp: list[training_view.Epoch], drawn: dict[str, Any]) -> None:
    training_view.layers_picture(demp)
    assert drawn["epochs"] == [2]
    assert [(x.layer, list(x.dead), list(x.removed)) for x in drawn["layers"]] == [
        ("a", [0.5], [0.25]), ("b", [0.5], [0.25]),
    ]  # fmt: skip
    rows = training_view.layer_rows(demp)
    assert [(row.layer, row.channels, row.moments) for row in rows] == [("a", 8, ["4 (2)"]), ("b", 4, ["2 (1)"])]


def test_moments_are_evenly_spread_and_end_with_the_last(tmp_path: Path) -> None:
    write_history(tmp_path / "history.jsonl", deaths=True)
    assert [e.epoch for e in training_view.moments(read_history(tmp_path))] == [8, 16, 24, 32, 40]


def test_training_draws_deaths_only_where_some_were_counted() -> None:
    with_deaths, without = training_plots.training([CURVE, DYING]), training_plots.training([CURVE])
    assert "dead channels, %" in words(with_deaths) and "dead channels, %" not in words(without)
    assert PALETTE["light"]["dead"] in svg(with_deaths.light_wide)
    assert PALETTE["light"]["dead"] not in svg(without.light_wide)


def test_one_epoch_is_a_visible_point() -> None:
    def points(curve: Curve) -> int:
        return svg(training_plots.training([curve]).light_wide).count("<use ")

    assert points(Curve("dense", "dense", [1], [50.0], [None])) > points(CURVE)


def test_every_panel_and_layer_is_drawn() -> None:
    lines = [Line("dense", "dense", [1, 2], [1.0, 2.0]), Line("DemP", "compact", [1, 2], [math.nan, 3.0], dashed=True)]
    text = words(training_plots.course([Panel("loss", lines, log=True), Panel("speed", lines[:1])]))
    assert all(word in text for word in ("loss", "speed", "dense", "DemP", "epoch"))
    layers = [Deaths(f"layer{i}", [0.0, 0.5], [0.0, 0.25]) for i in range(30)]
    picture = training_plots.deaths([1, 2], layers)
    assert all(f"layer{i}" in words(picture) for i in range(30))
    assert svg(picture.light_wide).count("fill-opacity: 0.4") == svg(picture.light_wide).count("fill-opacity") == 30


def test_a_step_needs_its_edges_only() -> None:
    assert training_plots.steps([0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0]) == [0, 2, 5, 7]
    assert training_plots.steps([0.3]) == [0]
