"""A training that was killed goes on from its last checkpoint and ends with the weights it would have had."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.data import load
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.training.optimizer import optimizer_for
from pipeline.training.snapshots.checkpoint import Checkpoints, Snapshot, moments_of, put_moments
from pipeline.training.train import Setting, train_sparse

MODEL = config.Model(args={"width": 4})
SECTION = {
    "epochs": 10, "batch_size": 100, "lambda_peak": 0.5, "prune_every": 20, "checkpoint_s": 0.0, "augment": "shift",
}  # fmt: skip
KILLED = """
import os, signal
from pathlib import Path
from pipeline import config
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.training import loop, sparsifier
from pipeline.training.snapshots.checkpoint import Checkpoints
from pipeline.training.train import Setting, train_sparse
calls = []
def dying(original):
    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == {nth}:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return call
{patch}
section = config.sparse_of(**{section!r})
out, kept = Path({out!r}), Path({kept!r})
task = Setting(config.Model(args={{"width": 4}}), load(config.Data()), 1, 1, "cpu", out, Silent(), kept)
train_sparse(section, task)
"""
PLACES = {
    "in the middle of a removal": ("sparsifier.without = dying(sparsifier.without)", 3),
    "in the middle of a checkpoint": (
        "import pipeline.training.snapshots.checkpoint as c; c.save_file = dying(c.save_file)",
        5,
    ),
    "in the middle of an epoch": ("loop.Loop._step = dying(loop.Loop._step)", 93),
}


class Recorder(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def trained(out: Path, kept: Path | None, progress: Silent | None = None, **changes: Any) -> Trained:
    out.mkdir(exist_ok=True)
    task = Setting(MODEL, load(config.Data()), 1, 1, "cpu", out, progress or Silent(), kept)
    return train_sparse(config.sparse_of(**SECTION | changes), task)


def killed(out: Path, kept: Path, place: str, **changes: object) -> None:
    patch, nth = PLACES[place]
    out.mkdir()
    code = KILLED.format(patch=patch, nth=nth, section=SECTION | changes, out=str(out), kept=str(kept))
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("undisturbed"), None)


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_training_goes_on_bit_for_bit(place: str, tmp_path: Path, undisturbed: Trained) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    killed(out, kept, place)
    assert 1 <= len([p for p in kept.iterdir() if p.name.isdecimal()]) <= 3
    progress = Recorder()
    again = trained(out, kept, progress)
    assert any(note.startswith("going on from step ") for note in progress.notes)
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert again.plan is not None and undisturbed.plan is not None
    assert json.loads(again.plan.read_text()) == json.loads(undisturbed.plan.read_text())
    assert again.census is not None and undisturbed.census is not None
    assert again.census.read_bytes() == undisturbed.census.read_bytes()
    first, second = (steady(run) for run in (undisturbed, again))
    assert first == second
    assert len(second) == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"channels_last": True},
        {"channels_last": True, "optimizer": "adamw", "lr": 0.01, "target": {"macs": 0.4}, "amp": "bf16"},
        {"mixup": 0.2, "cutmix": 1.0, "auto_augment": "trivialaugment", "sampling": "balanced"},
    ],
    ids=["channels last", "channels last, adamw, steered, bf16", "blended, changed and balanced"],
)
def test_a_killed_training_goes_on_bit_for_bit_however_its_steps_are_computed(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", None, **changes)
    killed(tmp_path / "out", tmp_path / "kept", "in the middle of an epoch", **changes)
    again = trained(tmp_path / "out", tmp_path / "kept", **changes)
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    rows = [json.loads(line) for line in again.history.read_text().splitlines()]
    assert any(row["removals"] for row in rows)


def steady(run: Trained) -> list[dict[str, object]]:
    """The rows of a history without what a clock has told."""
    rows = []
    for line in run.history.read_text().splitlines():
        row = json.loads(line)
        told = [{k: v for k, v in r.items() if k in ("step", "channels", "left", "macs")} for r in row.pop("removals")]
        rows.append({k: v for k, v in row.items() if k not in ("seconds", "images_per_s", "loss")} | {"removals": told})
    return rows


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path: Path, undisturbed: Trained) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    trained(out, kept)
    folders = sorted(kept.iterdir())
    assert [int(folder.name) for folder in folders] == [126, 140]
    weights = folders[1] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    progress = Recorder()
    again = trained(out, kept, progress)
    assert progress.notes[0].startswith("checkpoint 0000000140 cannot be used (weights.safetensors is not what")
    assert progress.notes[1] == "going on from step 126"
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()


def test_without_a_whole_checkpoint_the_training_starts_anew(tmp_path: Path, undisturbed: Trained) -> None:
    kept = tmp_path / "kept"
    (kept / "0000000020").mkdir(parents=True)
    (kept / "0000000020" / "state.json").write_text('{"files": {"../../x": "0"}, "step": 20}')
    (kept / "notes.txt").write_text("mine")
    progress = Recorder()
    again = trained(tmp_path / "out", kept, progress)
    assert "cannot be used" in progress.notes[0]
    assert not any(note.startswith("going on") for note in progress.notes)
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()


def test_new_checkpoints_take_the_place_of_those_that_cannot_be_used(tmp_path: Path) -> None:
    """Of later steps, damaged: they are no reason to remove what is whole, and one of the same step is replaced."""
    kept, network = Checkpoints(tmp_path), build(MODEL, num_classes=10, input_shape=(1, 8, 8))
    for name in ("0000000020", "0000000126", "0000000140"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    for step, left in ((10, [10]), (20, [10, 20]), (30, [20, 30])):
        kept.save(Snapshot(step, network, {}, {}, {}))
        assert sorted(int(path.name) for path in tmp_path.iterdir()) == left
    fresh = functools.partial(build, MODEL, num_classes=10, input_shape=(1, 8, 8))
    last = kept.last(fresh, pytest.fail)
    assert last is not None and last.step == 30


def test_a_checkpoint_of_another_version_is_not_used(tmp_path: Path) -> None:
    kept, fresh = Checkpoints(tmp_path), functools.partial(build, MODEL, num_classes=10, input_shape=(1, 8, 8))
    kept.save(Snapshot(10, fresh(), {}, {}, {}))
    state = tmp_path / "0000000010" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"schema": 1}))
    notes: list[str] = []
    assert kept.last(fresh, notes.append) is None
    assert notes == ["checkpoint 0000000010 cannot be used (written by another version)"]


@pytest.mark.parametrize("change", [{"step": 11}, {"records": None}, {"seal": None}])
def test_a_state_that_was_changed_is_not_used(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoints, fresh = Checkpoints(tmp_path), functools.partial(build, MODEL, num_classes=10, input_shape=(1, 8, 8))
    checkpoints.save(Snapshot(10, fresh(), {}, {}, {"loop": 1}))
    state = tmp_path / "0000000010" / "state.json"
    whole = checkpoints.last(fresh, pytest.fail)
    assert whole is not None and whole.records == {"loop": 1}
    state.write_text(json.dumps(json.loads(state.read_text()) | change))
    notes: list[str] = []
    assert checkpoints.last(fresh, notes.append) is None
    assert notes == ["checkpoint 0000000010 cannot be used (state.json is not what was written)"]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_state_of_an_optimizer_comes_back(name: str, tmp_path: Path) -> None:
    section = config.Training.model_validate({"optimizer": name})

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build(MODEL, num_classes=10, input_shape=(1, 8, 8))

    def step(model: nn.Module, optimizer: object, seed: int) -> None:
        torch.manual_seed(seed)
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        optimizer.step(0.1)  # type: ignore[attr-defined]
        optimizer.zero_grad()  # type: ignore[attr-defined]

    one = network()
    first = optimizer_for(section, list(one.parameters()))
    step(one, first, 1)
    checkpoints = Checkpoints(tmp_path / "kept")
    checkpoints.save(Snapshot(1, one, moments_of(one, first), {"mask": torch.ones(3, dtype=torch.uint8)}, {"a": 1}))
    last = checkpoints.last(network, pytest.fail)
    assert last is not None
    assert (last.step, last.records) == (1, {"a": 1})
    assert last.method["mask"].tolist() == [1, 1, 1]
    second = optimizer_for(section, list(last.network.parameters()))
    put_moments(last.network, second, last.moments)
    step(one, first, 2)
    step(last.network.train(), second, 2)
    for p, q in zip(one.parameters(), last.network.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(KeyError):
        put_moments(last.network, second, {"nobody|exp_avg": torch.zeros(1)})


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.training.snapshots.checkpoint as module

    model = build(MODEL, num_classes=10, input_shape=(1, 8, 8))
    checkpoints = Checkpoints(tmp_path / "kept")
    checkpoints.save(Snapshot(1, model, {}, {}, {}))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(Exception, match=r"disk|space"):
        checkpoints.save(Snapshot(2, model, {}, {}, {}))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["0000000001"]
