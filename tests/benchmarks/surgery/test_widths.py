"""Benchmarks of residual streams and of alignment: which channels die, which cases are left, and what is promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.results import Point, fill
from benchmarks.surgery import alignment, residual
from benchmarks.surgery.deaths import BACKENDS, deeper, filled, half, inner, with_deaths


def dead_by_layer(model: nn.Module) -> dict[str, list[int]]:
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return {n: (m.weight.detach() == 0).nonzero().flatten().tolist() for n, m in norms.items()}


def test_deaths_follow_their_pattern() -> None:
    """ResNet-18: stem, projections and each block's second normalisation write to streams."""
    dead = dead_by_layer(with_deaths("resnet18", inner))
    assert {len(dead[n]) for n in ("bn1", "layer1.0.bn2", "layer1.1.bn2")} == {int(0.2 * 64)}
    assert len(dead["layer4.0.bn1"]) == int(0.7 * 512) and len(dead["layer4.0.downsample.1"]) == int(0.2 * 512)
    agreeing = dead_by_layer(with_deaths("resnet18", half, agree=True))
    assert agreeing["bn1"] == agreeing["layer1.1.bn2"] and len(agreeing["bn1"]) == 32
    shares = [deeper(depth, False, torch.Generator()) for depth in (0.0, 1.0)]
    assert shares == pytest.approx([0.1, 0.9])


def test_cases_that_are_there_are_not_measured_again(tmp_path: Path) -> None:
    out, asked = tmp_path / "points.json", list[Point]()

    def measure(case: Point) -> list[Point]:
        asked.append(case)
        return [{"figure": 1.0}, {"figure": 2.0}]

    cases: list[Point] = [{"model": "a"}, {"model": "b"}]
    assert fill(out, "command", cases[:1], measure, 60.0)
    assert fill(out, "command", cases, measure, 60.0)
    assert asked == cases
    assert not fill(out, "command", [*cases, {"model": "c"}], measure, 0.0) and asked == cases


def test_the_recorded_command_is_the_one_that_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, asked = list[int](), list[tuple[int, float]]()
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def measured(case: Point, count: int, limit_s: float) -> list[Point]:
        asked.append((count, limit_s))
        return [{"figure": 1.0}]

    def command(name: str, *words: str) -> str:
        out = tmp_path / name
        assert filled(
            "surgery.residual", "About.\nMore.", ["--out", str(out), *words], 30.0, [{"model": "a"}], measured
        )
        told: str = json.loads(out.read_text())["command"]
        return told

    assert command("a.json") == "python -m benchmarks.surgery.residual --out benchmarks/results/a.json"
    told = command("b.json", "--threads", "3", "--time-limit-s", "180", "--limit-s", "9")
    line = "python -m benchmarks.surgery.residual --out benchmarks/results/b.json"
    assert told == f"{line} --threads 3 --time-limit-s 180"
    assert asked == [(2, 30.0), (3, 180.0)] and threads == [2, 3]
    words = ["--out", str(tmp_path / "c.json"), "--limit-s", "-1"]
    assert filled("surgery.residual", "About.", words, 30.0, [{"model": "a"}], measured) is None and len(asked) == 2


def test_cases_name_a_backend_that_is_not_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for words, more in ((), {}), (("--backend", "openvino"), {"backend": "openvino"}):
        asked, out = list[Point](), tmp_path / f"{len(words)}.json"

        def measured(case: Point, *_: object, asked: list[Point] = asked) -> list[Point]:
            asked.append(case)
            return [{"figure": 1.0}]

        assert filled("a", "About.", ["--out", str(out), *words], 30.0, [{"model": "m"}], measured, BACKENDS) == out
        assert asked == [{**more, "model": "m"}]
        assert json.loads(out.read_text())["command"].endswith(" ".join((out.name, *words)))


def test_auto_is_held_to_the_best_and_to_dense() -> None:
    def auto(over_best: float, over_dense: float) -> Point:
        return {"model": "m", "deaths": "half", "align": "auto", "over_best": over_best, "over_dense": over_dense}

    assert alignment.missed([auto(1.03, 1.0), {"align": "8"}]) == []
    assert len(alignment.missed([auto(1.04, 0.5), auto(1.0, 1.01)])) == 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_case_of_each_is_measured(backend: str) -> None:
    pytest.importorskip(backend)
    case: Point = {"model": "resnet18", "deaths": "half, each layer its own", "align": 8}
    points = residual.measured(case, 1, 1.0)
    assert [p["residual"] for p in points] == ["dense", "tied", "untied"] * 2
    assert points[0]["macs"] > points[1]["macs"] > points[2]["macs"] and points[0]["openings"] >= 5
    assert all(p["over_tied_low"] <= p["over_tied"] <= p["over_tied_high"] for p in points[2::3])
    rows = alignment.measured({"backend": backend, "model": "mobilenet_v2", "deaths": "half of each layer"}, 1, 1.0)
    assert [p["align"] for p in rows] == ["1", "8", "16", "32", "auto", "dense"]
    assert rows[0]["channels"] <= rows[1]["channels"] <= rows[2]["channels"] <= rows[3]["channels"]
    for row in rows:
        assert row["auto_over_low"] <= row["auto_over"] <= row["auto_over_high"]
    assert rows[4]["auto_over"] == 1.0
    assert rows[4]["over_best"] == max(row["auto_over"] for row in rows[:4])
    assert rows[4]["over_dense"] == rows[5]["auto_over"]
