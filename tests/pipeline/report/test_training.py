"""What the report shows of a training: the figures of history.jsonl, as plots and as tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import training
from pipeline.report.page.plots import Line, Panel, course
from pipeline.report.training import Deaths, Epoch, epochs_of
from runtime.errors import UserError
from tests.pipeline.report.page.test_plots import words
from tests.pipeline.report.run_folder import BEFORE, DEAD, write_history

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
def sparse() -> list[Epoch]:
    return parsed("".join(json.dumps(row) + "\n" for row in ROWS))


def parsed(text: str) -> list[Epoch]:
    return epochs_of(text.encode(), Path("history.jsonl"))


def written(folder: Path, *, deaths: bool) -> list[Epoch]:
    write_history(folder / "history.jsonl", deaths=deaths)
    return parsed((folder / "history.jsonl").read_text())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the plots show, by axis; nothing is drawn."""
    shown: dict[str, Any] = {}
    monkeypatch.setattr(training, "course", lambda title, panels, alt: shown.update({p.axis: p for p in panels}))
    monkeypatch.setattr(training, "deaths", lambda title, epochs, layers: shown.update(epochs=epochs, layers=layers))
    return shown


def test_an_epoch_is_a_line_of_the_history(sparse: list[Epoch]) -> None:
    assert [e.epoch for e in sparse] == [1, 2] and [e.penalty for e in sparse] == [0.01, 0.04]
    assert [e.removed for e in sparse] == [0, 3]
    assert sparse[0].dead_by_layer == {} and sparse[1].dead_by_layer == {"a": 4, "b": 2}


def test_a_training_that_did_not_run_has_no_epochs_and_no_pictures() -> None:
    assert parsed("") == []
    assert training.accuracy_picture([], []) is None and training.course_picture([], []) is None
    assert training.layers_picture([]) is None and training.layer_rows([]) == []


@pytest.mark.parametrize(
    "line", ["{", "[1]", "{}", '{"epoch": 1, "removals": [{}]}', '{"epoch": 1, "dead_by_layer": 3}', "[" * 9999]
)
def test_a_damaged_history_is_named(line: str) -> None:
    with pytest.raises(UserError, match=r"history\.jsonl") as caught:
        parsed(line + "\n")
    assert "--redo" in caught.value.remedy


def test_accuracy_and_deaths_are_percent(tmp_path: Path, drawn: dict[str, Any]) -> None:
    training.accuracy_picture(written(tmp_path, deaths=False), written(tmp_path, deaths=True))
    dense, compact = drawn["test accuracy, %"].lines
    assert (dense.label, compact.label) == ("dense", "sparse") and list(compact.epochs) == list(range(1, 41))
    (dead,) = drawn["dead channels, %"].lines
    assert dead.values[0] == pytest.approx(100 * 6 / BEFORE) and dead.values[-1] == pytest.approx(100 * DEAD / BEFORE)
    assert 98 < dense.values[-1] < 100


def test_the_course_has_every_figure_in_the_unit_of_its_axis(sparse: list[Epoch], drawn: dict[str, Any]) -> None:
    training.course_picture([], sparse)
    assert list(drawn["loss"].lines[0].values) == [2.0, 1.0] and drawn["loss"].log
    penalty, sigma = drawn["lambda and sigma, % of their peaks"].lines
    assert penalty.label == "lambda, peak 0.04" and list(penalty.values) == [25.0, 100.0]
    assert sigma.label == "sigma, peak 2e-05" and list(sigma.values) == [50.0, 100.0]
    assert list(drawn["MACs an image, % of dense"].lines[0].values) == [100.0, 60.0]
    dead, removed = drawn["channels, %"].lines
    assert math.isnan(dead.values[0]) and dead.values[1] == 50.0
    assert list(removed.values) == [0.0, 25.0]
    assert list(drawn["images/s while training"].lines[0].values) == [100.0, 300.0]


def test_layers_show_their_share_of_deaths_and_removals(sparse: list[Epoch], drawn: dict[str, Any]) -> None:
    training.layers_picture(sparse)
    assert drawn["epochs"] == [2]
    assert [(x.layer, list(x.dead), list(x.removed)) for x in drawn["layers"]] == [
        ("a", [0.5], [0.25]), ("b", [0.5], [0.25]),
    ]  # fmt: skip
    rows = training.layer_rows(sparse)
    assert rows == [["a", "8", "4 (2)"], ["b", "4", "2 (1)"]]


def test_moments_are_evenly_spread_and_end_with_the_last(tmp_path: Path) -> None:
    epochs = written(tmp_path, deaths=True)
    assert len(epochs) == 40
    assert [e.epoch for e in training.moments(epochs)] == [8, 16, 24, 32, 40]


def test_deaths_are_drawn_only_where_some_were_counted(tmp_path: Path) -> None:
    dense, sparse = written(tmp_path, deaths=False), written(tmp_path, deaths=True)
    with_deaths, without = training.accuracy_picture(dense, sparse), training.accuracy_picture(dense, [])
    assert with_deaths and "dead channels, %" in words(with_deaths) and "var(--dead)" in with_deaths.svg
    assert without and "dead channels, %" not in words(without) and "var(--dead)" not in without.svg


def test_one_epoch_is_a_visible_point() -> None:
    def marked(epochs: list[int]) -> bool:
        line = Line("dense", "dense", epochs, [50.0] * len(epochs))
        return "fill: var(--dense)" in course("t", [Panel("accuracy", [line])], "").svg

    assert marked([1])
    assert not marked([1, 2])


def test_every_panel_and_layer_is_drawn() -> None:
    lines = [
        Line("dense", "dense", [1, 2], [1.0, 2.0]),
        Line("sparse", "compact", [1, 2], [math.nan, 3.0], dashed=True),
    ]
    text = words(course("t", [Panel("loss", lines, log=True), Panel("speed", lines[:1])], "all of it"))
    assert all(word in text for word in ("loss", "speed", "dense", "sparse", "epoch"))
    layers = [Deaths(f"layer{i}", [0.0, 0.5], [0.0, 0.25]) for i in range(30)]
    picture = training.deaths("t", [1, 2], layers)
    assert all(f"layer{i}" in words(picture) for i in range(30))
    assert picture.svg.count("fill-opacity: 0.4") == picture.svg.count("fill-opacity") == 30


def test_a_step_needs_its_edges_only() -> None:
    assert training.steps([0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0]) == [0, 2, 5, 7]
    assert training.steps([0.3]) == [0]
