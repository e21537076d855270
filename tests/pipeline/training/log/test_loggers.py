"""Loggers get every figure of a row: what the real packages then hold, and one line where one cannot begin."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.training import train
from pipeline.training.log.history import History
from pipeline.training.log.loggers import LOGGERS, Described, Loggers, demand_loggers, scalars
from runtime.errors import UserError

ROW = {
    "epoch": 3, "loss": 0.5, "accuracy": 0.75, "dead": None, "dead_by_layer": {"relu": 2, "layer1.0.relu": 0},
    "whole": "a reason", "removals": [{"channels": 4}, {"channels": 3}], "lambda": 0.01,
}  # fmt: skip
FIGURES = {
    "loss": 0.5, "accuracy": 0.75, "dead_by_layer/relu": 2.0, "dead_by_layer/layer1.0.relu": 0.0, "lambda": 0.01,
    "removed": 7.0,
}  # fmt: skip


def logged(name: str, folder: Path) -> list[str]:
    """Log ROW; what was noted."""
    notes: list[str] = []
    loggers = Loggers([name], Described("runs 10-dense", {"lr": 0.1, "model": "demo:resnet"}, folder), notes.append)
    loggers.row(ROW)
    loggers.close()
    return notes


def records_of(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which here begins with 7 bytes of its own: blocks of 32 KiB, in
    each a CRC (4 bytes), a length (2), and whether the piece is whole (1), first (2), middle (3) or last (4)."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_every_number_of_a_row_is_a_scalar() -> None:
    assert scalars(ROW) == FIGURES
    assert scalars({"epoch": 1}) == {"removed": 0.0}


def test_tensorboards_events_are_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert logged("tensorboard", tmp_path) == []
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {e.step for e in events.Scalars("accuracy")} == {3}
    assert [e.value for e in events.Scalars("dead_by_layer/relu")] == [2.0]


def test_mlflow_holds_a_run_with_figures_and_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    assert logged("mlflow", tmp_path) == [] == logged("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("demport")
    run, other = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == FIGURES == other.data.metrics
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(3, 0.5)]
    assert run.data.params == {"lr": "0.1", "model": "demo:resnet"}
    assert (run.info.run_name, run.info.status) == ("runs 10-dense", "FINISHED")


def test_a_killed_training_goes_on_in_its_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the run has are not logged again; a run that is gone is made anew."""
    mlflow = pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    training = Described("runs 10-dense", {"lr": 0.1}, tmp_path, tmp_path / "checkpoints")
    client = mlflow.MlflowClient()
    seen = []
    for last, ended in ((2, None), (3, False), (4, True)):
        loggers = Loggers(["mlflow"], training, print)
        for epoch in range(1, last + 1):
            loggers.row({"epoch": epoch, "loss": float(epoch)})
        if ended is not None:
            loggers.close(ended)
        runs = client.search_runs([client.get_experiment_by_name("demport").experiment_id])
        seen.append([run.info.status for run in runs])
    assert seen == [["RUNNING"], ["FAILED"], ["FINISHED"]]
    run = json.loads((tmp_path / "checkpoints" / "loggers.json").read_text())["mlflow"]
    assert [m.step for m in client.get_metric_history(run, "loss")] == [1, 2, 3, 4]
    client.delete_run(run)
    (tmp_path / "checkpoints" / "loggers.json").write_text('{"mlflow": "nothing"}')
    Loggers(["mlflow"], training, print).close()
    assert json.loads((tmp_path / "checkpoints" / "loggers.json").read_text())["mlflow"] != run


def test_a_training_that_ends_in_an_error_says_so_to_its_loggers(tmp_path: Path) -> None:
    ends: list[bool] = []

    class Watcher:
        def row(self, row: Any) -> None: ...

        def close(self, ended: bool = True) -> None:
            ends.append(ended)

    history = History(tmp_path / "history.jsonl", Watcher())

    class Loop:
        def run(self) -> float:
            raise MemoryError

    loop: Any = Loop()
    loop.history = history
    with pytest.raises(MemoryError):
        train._run(loop)
    history.end()
    assert ends == [False, True]


def test_wandb_offline_leaves_a_run_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert logged("wandb", tmp_path) == []
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records: list[Any] = []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and "exit" not in {one.WhichOneof("record_type") for one in records}:
        time.sleep(0.1)  # another process writes the file, and may be a little behind
        records = [proto.Record.FromString(data) for data in records_of(file.read_bytes())]
    (history,) = (one.history for one in records if one.WhichOneof("record_type") == "history")
    items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
    assert {key: items[key] for key in FIGURES} == FIGURES and items["_step"] == 3
    (run,) = (one.run for one in records if one.WhichOneof("record_type") == "run")
    assert (run.display_name, run.project) == ("runs 10-dense", "demport")


@pytest.mark.parametrize(("name", "module"), [
    ("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb"),
])  # fmt: skip
def test_without_the_extra_one_line_says_so(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"log: {name} is asked for and cannot be imported") as caught:
        demand_loggers([name])
    assert f"pip install 'demport[{LOGGERS[name][2]}]'" in caught.value.remedy
    with pytest.raises(UserError, match="is asked for"):
        Loggers([name], Described("a", {}, tmp_path), print)
    assert not list(tmp_path.iterdir())


def test_what_cannot_begin_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://store")
    with pytest.raises(UserError, match="log: mlflow cannot begin") as caught:
        logged("mlflow", tmp_path)
    assert "\n" not in str(caught.value) and "take mlflow out of `log`" in caught.value.remedy


def test_one_that_fails_on_the_way_is_noted_once_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        calls = 0

        run = None

        def __init__(self, training: Described, run: str | None) -> None:
            self.name = training.name

        def scalars(self, figures: dict[str, float], epoch: int) -> None:
            Broken.calls += 1
            raise ConnectionError("the server\nis away")

        def close(self, ended: bool) -> None:
            raise AssertionError("it was left out")

    monkeypatch.setattr("pipeline.training.log.tensorboard.TensorBoard", Broken)
    notes: list[str] = []
    loggers = Loggers(["tensorboard"], Described("a", {}, tmp_path), notes.append)
    loggers.row(ROW)
    loggers.row(ROW)
    loggers.close()
    assert Broken.calls == 1 and len(notes) == 1
    assert notes[0].startswith("log: tensorboard failed and gets no more (the server") and "\n" not in notes[0]
