"""Which steps the speeds of a training are those of: a clock that tells what it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.training.log.history import History
from pipeline.training.state import Removal

BATCH = 8


class Clock:
    """Seconds, in a history of batches of BATCH images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("pipeline.training.log.history.time", SimpleNamespace(perf_counter=lambda: self.now))

    def window(self, history: History, *seconds: float) -> None:
        """Steps that take so long; their losses are 1, 2, ..."""
        history.begin()
        for k, each in enumerate(seconds):
            self.now += each
            history.step(torch.tensor(1.0 + k))
        history.end_window(BATCH, 0)
        self.now += 1e6  # what lies between two windows


def removal(step: int) -> Removal:
    return Removal(step, 1, 1, 1, 1, 0.0, 0.0)


def speeds(row: dict[str, object], when: str) -> list[tuple[float | None, float | None]]:
    """Images/s and milliseconds of a step of every removal in a row."""
    removals = row["removals"]
    assert isinstance(removals, list)
    return [(r[f"images_per_s_{when}"], r[f"step_ms_{when}"]) for r in removals]


def speed_of(*seconds: float) -> tuple[float, float]:
    return BATCH * len(seconds) / sum(seconds), 1000 * sum(seconds) / len(seconds)


def test_the_first_step_counts_for_the_loss_and_not_for_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, history = Clock(monkeypatch), History(None)
    clock.window(history, 900.0)
    assert history.window_text() == "  loss 1"
    clock.window(history, 1.0, 2.0, 1.0)
    assert history.images_per_s == BATCH * 3 / 4
    assert history.window_text() == "  loss 2  6 images/s"
    row = history.end_epoch({})
    assert (row["loss"], row["seconds"], row["images_per_s"]) == ((1 + 1 + 2 + 3) / 4, 4.0, 6.0)
    clock.window(history, 5.0)
    assert history.end_epoch({})["images_per_s"] == BATCH / 5, "the first of an epoch is as any other"


def test_speeds_around_a_removal_are_those_of_the_ten_steps_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, history = Clock(monkeypatch), History(None)
    clock.window(history, 900.0, 64.0)
    clock.window(history, *[1.0] * 4)
    clock.window(history, *[2.0] * 6)
    history.removed(removal(12))
    clock.window(history, 900.0, *[0.5] * 8)
    assert history.end_epoch({})["removals"] == [], "nine steps are too few"
    clock.window(history, 0.25)
    clock.window(history, *[64.0] * 20)
    row = history.end_epoch({})
    assert speeds(row, "before") == [speed_of(*[1.0] * 4, *[2.0] * 6)]
    assert speeds(row, "after") == [speed_of(*[0.5] * 8, 0.25)]
    assert row["seconds"] == 0.25 + 64 * 20


def test_a_removal_takes_fewer_steps_where_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, history = Clock(monkeypatch), History(None)
    clock.window(history, 900.0, 1.0, 2.0)
    history.removed(removal(3))
    clock.window(history, 900.0, 4.0)
    history.removed(removal(5))
    clock.window(history, 900.0)
    history.removed(removal(6))
    clock.window(history, 900.0, 8.0)
    row = history.end_epoch({})
    assert [r["step"] for r in row["removals"]] == [3, 5], "the last one waits"
    history.end()
    last = history.rows[-1]
    assert speeds(last, "before") == [speed_of(1.0, 2.0), speed_of(4.0), (None, None)]
    assert speeds(last, "after") == [speed_of(4.0), (None, None), speed_of(8.0)]


def test_a_removal_that_waits_is_in_the_same_row_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, history = Clock(monkeypatch), History(tmp_path / "history.jsonl")
    clock.window(history, 900.0, 1.0)
    history.removed(removal(2))
    clock.window(history, 900.0, *[2.0] * 4)
    history.end_epoch({})
    again = History(tmp_path / "again.jsonl")
    again.restore(json.loads(json.dumps(history.state())))
    clock.window(history, *[2.0] * 5)
    clock.window(again, 900.0, *[4.0] * 4)
    one, other = history.end_epoch({}), again.end_epoch({})
    assert speeds(one, "before") == speeds(other, "before") == [speed_of(1.0)]
    assert (speeds(one, "after"), speeds(other, "after")) == ([speed_of(2.0)], [speed_of(4.0)])
    rows = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [len(row["removals"]) for row in rows] == [0, 1]
