"""Averaged weights, the best epoch, early stopping: what they are, and what a training then leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline import config
from pipeline.data import Dataset, load
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.training.census import load_census
from pipeline.training.hooks import Hooks
from pipeline.training.loop import Loop, metric_of
from pipeline.training.possible import demand_possible
from pipeline.training.snapshots.selection import Selection, averaged_copy, demand_selection, follow
from pipeline.training.train import Setting, train_dense, train_sparse, trained_network
from runtime.errors import UserError
from tests.pipeline.training.small import SmallNet

MODEL = config.Model(args={"width": 4})


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(config.Data(validation=0.15))


def setting(out: Path, data: Dataset) -> Setting:
    out.mkdir(exist_ok=True)
    return Setting(MODEL, data, 1, 1, "cpu", out, Notes())


def rows(trained: Trained) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trained.history.read_text().splitlines()]


def test_the_average_is_that_of_torch_once_it_is_warm() -> None:
    torch.manual_seed(0)
    network = SmallNet()
    average: Any = get_ema_multi_avg_fn  # untyped
    own, reference = averaged_copy(network), AveragedModel(network, multi_avg_fn=average(0.9), use_buffers=True)
    reference.n_averaged.fill_(1)  # else its first update copies, as ours has done
    for step in range(3):
        with torch.no_grad():
            for p in [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]:
                p.add_(torch.rand_like(p) + 0.1)
        network.get_buffer("bn1.num_batches_tracked").add_(1)
        follow(own, network, 0.9, 1000 + step)
        reference.update_parameters(network)
    expected = dict(reference.module.named_parameters()) | dict(reference.module.named_buffers())
    for name, value in own.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name].detach(), msg=name)
    assert int(own.get_buffer("bn1.num_batches_tracked")) == 3
    assert not own.training and not any(p.requires_grad for p in own.parameters())


def test_the_first_steps_are_soon_forgotten_and_what_is_held_at_zero_is_zero() -> None:
    network = nn.Linear(2, 1, bias=False)
    average = averaged_copy(network)
    with torch.no_grad():
        average.get_parameter("weight").fill_(1.0)
        network.weight.copy_(torch.tensor([[11.0, 0.0]]))
    follow(average, network, 0.999, 1)
    assert average.get_parameter("weight").tolist() == [[pytest.approx(1 * 2 / 11 + 11 * 9 / 11), 0.0]]
    follow(average, network, 0.5, 100)
    assert average.get_parameter("weight")[0, 0].item() == pytest.approx((2 / 11 + 9 + 11) / 2)


def test_only_epochs_after_the_target_and_the_last_removal_are_compared() -> None:
    section = config.sparse_of(target={"macs": 0.5, "reached_at": 0.5}, patience=2)
    best, network = Selection(section, 100), nn.Linear(1, 1)
    best.offer(1, 40, 0.99, network)
    assert not best.tensors, "the target is reached after 50 steps"
    best.offer(2, 50, 0.7, network)
    best.removed()
    best.offer(3, 60, 0.6, network)
    weight = network.weight.item()
    with torch.no_grad():
        network.weight.add_(1)
    best.offer(4, 70, 0.6, network)
    assert (best.epoch, best.value, best.since, best.stops) == (3, 0.6, 1, False)
    tensors, record = best.saved()
    again = Selection(section, 100)
    again.restore(tensors, json.loads(json.dumps(record)))
    again.offer(5, 80, 0.5, network)
    assert again.stops and again.tensors["weight"].item() == weight


def test_a_dense_training_stops_early_and_leaves_its_best_epoch(tmp_path: Path, digits: Dataset) -> None:
    """At a learning rate of 0 the first epoch is never bettered but for batch statistics, which do not move either."""
    still = config.Dense(epochs=9, batch_size=200, lr=0.0, patience=3, norm_momentum=1e-9)
    stopped = train_dense(still, setting(tmp_path / "still", digits))
    assert len(rows(stopped)) < 9
    values = [row["accuracy"] for row in rows(stopped)]
    best = values.index(max(values))
    assert len(values) == best + 1 + 3 and stopped.accuracy == max(values)
    moving = config.Dense(epochs=6, batch_size=100, lr=1.0, schedule="constant", best_epoch=True)
    asked = setting(tmp_path / "moving", digits)
    trained = train_dense(moving, asked)
    values = [row["accuracy"] for row in rows(trained)]
    assert len(values) == 6 and trained.accuracy == max(values)
    assert all(row["split"] == "validation" for row in rows(trained))
    assert digits.validation is not None
    assert metric_of(trained_network(MODEL, digits, trained), digits.validation) == max(values)
    assert isinstance(asked.progress, Notes)
    assert asked.progress.notes == [f"epoch {values.index(max(values)) + 1} of 6 is the best: its weights stay"]


def test_a_steered_training_leaves_averaged_weights_cut_like_its_own(tmp_path: Path, digits: Dataset) -> None:
    whole = dataclasses.replace(digits, validation=None)
    keys = {"epochs": 6, "batch_size": 100, "target": {"macs": 0.5}}
    raw = train_sparse(config.sparse_of(**keys), setting(tmp_path / "raw", whole))
    averaged = train_sparse(config.sparse_of(**keys, ema=0.9), setting(tmp_path / "averaged", whole))
    assert raw.plan is not None and averaged.plan is not None
    assert averaged.plan.read_text() == raw.plan.read_text(), "the average changes nothing of the training"
    one, two = load_file(raw.weights), load_file(averaged.weights)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])
    zero = one["conv1.weight"] == 0
    assert torch.equal(two["conv1.weight"] == 0, zero)
    network = trained_network(MODEL, digits, averaged)
    assert metric_of(network, digits.test) == averaged.accuracy == rows(averaged)[-1]["accuracy"]
    assert averaged.accuracy > 0.5
    assert averaged.census is not None and load_census(averaged.census).keys()
    assert rows(raw)[-1]["macs"] == rows(averaged)[-1]["macs"]


def test_with_a_validation_split_the_better_of_the_two_is_left(tmp_path: Path, digits: Dataset) -> None:
    section = config.Dense(epochs=3, batch_size=100, ema=0.99)
    trained = train_dense(section, setting(tmp_path, digits))
    for row in rows(trained):
        assert row["accuracy"] == max(row["accuracy_averaged"], row["accuracy_unaveraged"])
    assert digits.validation is not None
    assert metric_of(trained_network(MODEL, digits, trained), digits.validation) == trained.accuracy


class KilledError(Exception):
    pass


def test_a_killed_training_goes_on_with_its_average_and_its_best_epoch(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"epochs": 5, "batch_size": 100, "checkpoint_s": 0.0, "lr": 0.3}
    section = config.sparse_of(**keys, ema=0.95, patience=3, target={"macs": 0.5, "reached_at": 0.4})
    undisturbed = train_sparse(section, setting(tmp_path / "whole", digits))
    step, calls = Loop._step, list[int]()

    def dying(loop: Loop, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(loop.step)
        if len(calls) == 41:
            raise KilledError
        return step(loop, x, y)

    one = dataclasses.replace(setting(tmp_path / "one", digits), checkpoints=tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", dying)
        with pytest.raises(KilledError):
            train_sparse(section, one)
    newest = max(path for path in (tmp_path / "kept").iterdir() if path.name.isdecimal())
    names = load_file(newest / "method.safetensors").keys()
    assert any(name.startswith("demport.average|") for name in names)
    assert any(name.startswith("demport.best|") for name in names)
    again = train_sparse(section, one)
    assert isinstance(one.progress, Notes) and one.progress.notes[0].startswith("going on from step ")
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert [r["accuracy"] for r in rows(again)] == [r["accuracy"] for r in rows(undisturbed)]
    assert again.plan is not None and undisturbed.plan is not None
    assert again.plan.read_text() == undisturbed.plan.read_text()


def test_what_cannot_be_chosen_is_one_line_before_any_training(tmp_path: Path, digits: Dataset) -> None:
    whole = dataclasses.replace(digits, validation=None)
    with pytest.raises(UserError, match="patience, and no validation split to choose on") as caught:
        train_dense(config.Dense(epochs=1, patience=2), setting(tmp_path, whole))
    assert caught.value.remedy == "set data.validation, e.g. 0.1"
    with pytest.raises(UserError, match="best_epoch, and no validation split"):
        demand_possible(config.sparse_of(best_epoch=True, target={"macs": 0.5}), setting(tmp_path, whole))
    with pytest.raises(UserError, match=r"sparse\.patience with the method demp and no target"):
        demand_possible(config.sparse_of(patience=2), setting(tmp_path, digits))
    with pytest.raises(UserError, match=r"sparse\.ema with the method imp, which goes back"):
        demand_possible(config.sparse_of(method="imp", ema=0.9), setting(tmp_path, digits))
    demand_selection(config.sparse_of(ema=0.9), whole, Hooks())
    assert not (tmp_path / "history.jsonl").exists()
