"""The benchmark of trainings on few images: what it measures is what its names say."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import real_data, training
from pipeline import config
from pipeline.data import Dataset, load
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS, EXIT_USAGE

MODEL = config.Model(args={"width": 8})


@pytest.fixture(scope="module")
def few() -> Dataset:
    data = load(config.Data())
    return dataclasses.replace(data, train=training.first(data.train, 400))


def test_own_work_is_penalty_noise_and_census_over_plain_steps(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: plain turns take 1 s, DemP's 1.25 s, a census 0.5 s; 4 steps a turn, 8 in an epoch. The
    two turns that warm up take other times."""
    taken: list[tuple[Any, ...]] = []

    def timed(work: Any, device: torch.device) -> float:
        taken.append(work.__defaults__)
        work()
        if len(work.__defaults__) == 1:
            return 0.5
        training_number, turn = work.__defaults__
        return 99.0 if turn < 2 else (1.0, 1.25)[training_number]

    monkeypatch.setattr(training, "timed", timed)
    monkeypatch.setattr(training, "TURNS", 12)
    monkeypatch.setattr(training, "WARM_UP", 2)
    monkeypatch.setattr(training, "STEPS", {"cpu": 4})
    point = training.own_work(MODEL, few, torch.device("cpu"), 50)
    assert (point["turns"], point["steps"], point["plain_step_ms"]) == (10, 4, 250.0)
    assert point["penalty_and_noise_pct"] == pytest.approx(25.0)
    assert point["census_pct"] == pytest.approx(100 * 0.5 / (0.25 * 8))
    assert point["cost_pct"] == point["cost_low_pct"] == point["cost_high_pct"] == pytest.approx(50.0)
    assert len(taken) == 2 * 12 + 5 and taken[:4] == [(0, 0), (1, 0), (1, 1), (0, 1)], "they take turns"


def test_the_interval_of_own_work_is_that_of_the_turns(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of DemP take 1 to 1.2 times as long as the plain ones beside them, in no order."""
    draw = random.Random(0)
    longer = [draw.uniform(1.0, 1.2) for _ in range(60)]
    clock = iter([one for k, ours in enumerate(longer) for one in ((1.0, ours), (ours, 1.0))[k % 2]])
    monkeypatch.setattr(training, "timed", lambda work, device: next(clock, 0.0))
    monkeypatch.setattr(training, "TURNS", 60)
    point = training.own_work(MODEL, few, torch.device("cpu"), 50)
    assert point["cost_pct"] == pytest.approx(100 * (statistics.median(longer[training.WARM_UP :]) - 1))
    assert 0 < point["cost_low_pct"] < point["cost_pct"] < point["cost_high_pct"] < 20


def test_fast_trainings_are_compiled_in_bf16(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[config.Training] = []

    def loop(section: config.Training, *_: Any) -> Any:
        seen.append(section)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "Loop", loop)
    for fast in (True, False):
        with pytest.raises(KeyboardInterrupt):
            training.own_work(MODEL, few, torch.device("cpu"), 50, fast)
    assert [(s.amp, s.channels_last, s.compile) for s in seen] == [("bf16", True, True), ("none", False, False)]


def test_whole_trainings_lie_side_by_side(few: Dataset) -> None:
    given = argparse.Namespace(device="cpu", threads=1, epochs=4, cost="macs", reached_at=[0.5, 0.25], fast=False)
    dense, demp, early = training.removals(MODEL, few, given, 50)
    assert (dense["training"], demp["training"]) == ("dense", "demp")
    assert (early["reached_at"], early["cost"]) == (0.25, "macs") and early["params_pct"] < 100
    when = [next(row["epoch"] for row in one["curve"] if row["macs"] < dense["macs"]) for one in (early, demp)]
    assert when[0] <= when[1]
    assert demp["macs"] < dense["macs"] and demp["params_pct"] == 100 * demp["params"] / dense["params"] < 100
    assert demp["time_ratio"] == demp["time_s"] / dense["time_s"]
    assert [row["epoch"] for row in demp["curve"]] == [1, 2, 3, 4] and not dense["removals"]
    assert demp["curve"][-1]["macs"] == demp["macs"] and {row["macs"] for row in dense["curve"]} == {dense["macs"]}


def test_the_command_told_is_the_one_given(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_data, "dataset", lambda name, where: few)
    monkeypatch.setattr(training, "own_work", lambda *_: {"measured": "own work", "cost_pct": 1.0, "allowed_pct": 5.0})
    whole = {"measured": "removals", "network": "b", "time_ratio": 0.8, "params_pct": 19.0,
             "cost": "plain", "reached_at": 0.4}  # fmt: skip
    monkeypatch.setattr(training, "removals", lambda *_: [whole])
    out = tmp_path / "x.json"
    assert training.main(["--out", str(out), "--only", "own work", "--threads", "1", "--fast"]) == EXIT_PASS
    told = json.loads(out.read_text())
    start = "python -m benchmarks.training --out benchmarks/results/x.json"
    assert told["command"] == f"{start} --threads 1 --fast --only 'own work'"
    assert [p["measured"] for p in told["points"]] == ["own work"] * 2
    assert (
        training.main(
            ["--out", str(out), "--width", "64", "--only", "removals", "--threads", "1", "--reached-at", "0.4", "0.2"]
        )
        == EXIT_GATE_FAILED
    )
    told = json.loads(out.read_text())
    assert (
        told["command"].endswith("x.json --threads 1 --width 64 --reached-at 0.4 0.2 --only removals")
        and told["n"] == 1
    )
    assert told["points"] == [whole]


def test_broken_promises_are_named() -> None:
    kept = {"measured": "own work", "network": "a", "cost_pct": 4.9, "allowed_pct": 5.0}
    told = {"measured": "removals", "network": "b", "cost": "plain", "reached_at": 0.4}
    whole = {**told, "time_ratio": 0.69, "params_pct": 19.0}
    assert training.missed([kept, whole, {"measured": "removals", "network": "b"}]) == []
    found = training.missed([{**kept, "cost_pct": 5.1}, {**whole, "time_ratio": 0.71}, {**whole, "params_pct": 21.0}])
    assert len(found) == 3 and "5.1 %" in found[0] and "0.71" in found[1] and "21" in found[2]


def test_a_gpu_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training.main(["--out", str(tmp_path / "x.json"), "--device", "cuda"]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith("error: no CUDA device") and not list(tmp_path.iterdir())
