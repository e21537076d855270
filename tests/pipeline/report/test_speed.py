"""Which figures of speed become which plot and table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.report import profile, speed
from pipeline.report.collect import Run, collect
from tests.pipeline.report.run_folder import STAGES, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return collect(write_run(tmp_path / "run"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the plots show, by name; nothing is drawn."""
    shown: dict[str, Any] = {}
    monkeypatch.setattr(speed, "intervals", lambda title, spans, **rest: shown.update(spans=spans, **rest))
    monkeypatch.setattr(speed, "distribution_picture", lambda title, samples: shown.update(samples=samples))
    monkeypatch.setattr(speed, "sweep_picture", lambda title, batches, speeds: shown.update(at=batches, speeds=speeds))
    monkeypatch.setattr(profile, "layers_picture", lambda title, bars: shown.update(bars=bars))
    return shown


def test_speedups_carry_their_interval_and_the_limit_of_the_gate(run: Run, drawn: dict[str, Any]) -> None:
    speed.speedup_picture(run.report)
    assert [(span.value, span.low, span.high) for span in drawn["spans"]] == [
        (1.31, 1.27, 1.36), (1.6, 1.56, 1.65), (0.99, 0.95, 1.04),
    ]  # fmt: skip
    assert drawn["marks"] == [(1.0, "same"), (1.5, "gate")]


def test_speed_plots_get_samples_sweep_and_layers(run: Run, drawn: dict[str, Any]) -> None:
    list(speed.sections(run))
    assert min(drawn["samples"]["dense"]) == pytest.approx(1.83 * 0.97) and len(drawn["samples"]["compact"]) == 13
    assert drawn["at"] == [1, 32] and drawn["speeds"]["dense"] == pytest.approx([1000 / 0.21, 32_000 / 1.83])
    assert [(bar.layer, bar.dense, bar.compact, bar.floor) for bar in drawn["bars"]] == [
        ("stem.conv", 300.0, 200.0, 40.0), ("layer3", 500.0, 400.0, 350.0),
    ]  # fmt: skip


def test_nothing_to_draw_is_no_picture(tmp_path: Path) -> None:
    early = collect(write_run(tmp_path / "early", STAGES[2:3]))
    assert speed.speedup_picture(early.report) is None and speed.headline_samples(early) is None
    assert [one.title for one in speed.sections(early)] == ["Latency"]
