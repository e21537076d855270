"""The loop: what it computes, writes and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.config.task import task_of
from pipeline.data import WHOLE, Augment, Dataset, Part, load
from pipeline.progress import Silent
from pipeline.training.hooks import Hooks
from pipeline.training.log.history import History
from pipeline.training.loop import Loop, metric_of, steps_per_epoch
from runtime.errors import UserError
from tests.pipeline.training.small import SmallNet, joining

NONE = Hooks()


class Recorder(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.done: list[float] = []

    def update(self, done: float, text: str = "") -> None:
        self.done.append(done)
        self.texts += [text] if text else []


class Traced:
    """A method that writes down when it is asked."""

    def __init__(self, weight: Tensor) -> None:
        self.calls: list[tuple[str, int]] = []
        self.weight = weight

    def hooks(self) -> Hooks:
        names = ("after_backward", "after_step", "due", "dead")
        noted: Any = {name: self.noted(name) for name in names}
        return Hooks(penalty=self.penalty, figures=self.figures, **noted)

    def noted(self, name: str) -> Callable[..., Any]:
        return lambda step, *_: self.calls.append((name, step))

    def penalty(self, step: int) -> Tensor:
        self.calls.append(("penalty", step))
        return 100.0 + 0.0 * self.weight.sum()

    def figures(self, step: int) -> dict[str, Any]:
        self.calls.append(("figures", step))
        return {"dead": step // 2, "channels": 9}


@dataclasses.dataclass
class Fixed:
    """A split of given batches, the same in every epoch."""

    pairs: list[tuple[Tensor, Tensor]]
    name: str = "train"

    @property
    def labels(self) -> Tensor:
        return torch.cat([y for _, y in self.pairs])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch_size: int, *, seed: int | None = None, epoch: int = 0, augment: Augment = "none", first: int = 0,
        part: Part = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        yield from self.pairs[first:]

    def to(self, device: torch.device) -> Fixed:
        return self


def made(
    tmp_path: Path, section: config.Training, model: nn.Module, data: Dataset | None = None, hooks: Hooks = NONE
) -> Loop:
    data, history = data or load(config.Data()), History(tmp_path / "history.jsonl")
    return Loop(section, model, data, hooks, joining(section, data, seed=3), history, Recorder())


def digits_net() -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet()
    model.linear = nn.Linear(3, 10)
    return model


def test_one_step_against_a_hand_made_one(tmp_path: Path) -> None:
    """Label smoothing 0.2 over 10 classes: target 0.82 on the label and 0.02 on each other class."""
    data = load(config.Data())
    x, y = next(iter(data.train.batches(16)))
    data = dataclasses.replace(data, train=Fixed([(x, y)]))
    linear = nn.Linear(64, 10)
    model = nn.Sequential(nn.Flatten(), linear)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    section = config.Training(epochs=1, batch_size=16, lr=0.5, schedule="constant", weight_decay=0.1)
    loop = made(tmp_path, section, model, data)
    loop.task = task_of(config.task_section(label_smoothing=0.2))
    loop.run()
    target = torch.full((16, 10), 0.02)
    target[torch.arange(16), y] = 0.82
    error = (F.softmax(x.flatten(1) @ weight.T + bias, 1) - target) / 16
    assert torch.allclose(linear.weight, weight * 0.95 - 0.5 * error.T @ x.flatten(1), atol=1e-6)
    assert torch.allclose(linear.bias, bias * 0.95 - 0.5 * error.sum(0), atol=1e-6)


def test_hooks_come_in_order_and_the_history_holds_their_figures(tmp_path: Path) -> None:
    section = config.Training(epochs=2, batch_size=600)
    model = digits_net()
    method = Traced(model.linear.weight)
    loop = made(tmp_path, section, model, hooks=method.hooks())
    accuracy = loop.run()
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    order = ("penalty", "after_backward", "after_step", "due", "due")
    steps = [[(name, step) for name in order] for step in range(4)]
    assert method.calls == [*steps[0], *steps[1], ("figures", 1), *steps[2], *steps[3], ("figures", 3)]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["dead"] for row in rows] == [0, 1]
    assert rows[1]["accuracy"] == accuracy == metric_of(model, loop.data.test)
    assert 100 < rows[0]["loss"] < 105
    assert rows[1]["lr"] == pytest.approx(0.1 * (4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * 1.8 / 2.8)) / 2))
    assert rows[0]["images_per_s"] * rows[0]["seconds"] > 0
    assert isinstance(loop.progress, Recorder)
    assert loop.progress.done[-1] == 4
    told = loop.progress.texts[-1]
    assert told.startswith(
        f"epoch 2/2  accuracy {100 * accuracy:.2f} %  dead 1/9  {loop.sparsifier.state.macs / 1e6:,.5g} M MACs  loss "
    )
    assert told.endswith(f"  {rows[-1]['images_per_s']:,.0f} images/s")


def test_training_learns_and_ends_in_training_mode(tmp_path: Path) -> None:
    model = digits_net()
    loop = made(tmp_path, config.Training(epochs=8, batch_size=64, augment="shift"), model)
    untrained = metric_of(model, loop.data.test)
    accuracy = loop.run()
    assert accuracy > untrained + 0.2
    assert model.training


def test_accuracy_is_the_share_of_right_answers_in_eval_mode() -> None:
    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return F.one_hot(torch.arange(len(x)) % 10, 10).float()

    labels = (torch.arange(512) % 10, torch.full((88,), 3))
    split = Fixed([(torch.zeros(len(y), 1), y) for y in labels])
    model = Says().train()
    assert metric_of(model, split) == (512 + 9) / 600
    assert model.training


def test_steps_per_epoch_drop_a_partial_batch_unless_it_is_all() -> None:
    split = load(config.Data()).train
    assert [steps_per_epoch(split, size) for size in (100, 128, 1400, 1401)] == [14, 10, 1, 1]
    for size in (100, 128, 1400, 1401):
        assert len(list(split.batches(size, seed=0))) == steps_per_epoch(split, size)


def test_a_loss_that_is_not_finite_names_epoch_and_step(tmp_path: Path) -> None:
    data = load(config.Data())
    x, y = next(iter(data.train.batches(8)))
    bad = x.clone()
    bad[3] = torch.nan
    data = dataclasses.replace(data, train=Fixed([(x, y)] * 52 + [(bad, y)] + [(x, y)]))
    loop = made(tmp_path, config.Training(epochs=3, batch_size=8, lr=1e-3), digits_net(), data)
    with pytest.raises(UserError, match="the loss is nan in epoch 1, step 53") as caught:
        loop.run()
    assert "lower lr" in caught.value.remedy
    assert not (tmp_path / "history.jsonl").exists()


def test_a_diverging_training_is_refused(tmp_path: Path) -> None:
    linear = nn.Linear(64, 10)
    model = nn.Sequential(nn.Flatten(), linear)
    section = config.Training(epochs=30, batch_size=128, lr=3e38, schedule="constant", weight_decay=0.0)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch \d+, step \d+; a finite loss"):
        made(tmp_path, section, model).run()
    assert not torch.isfinite(linear.weight).all()


def test_a_network_with_several_outputs_in_training_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Any:
            y = self.linear(x.flatten(1))
            return (y, y) if self.training else y

    with pytest.raises(UserError, match="answers with tuple while it trains") as caught:
        made(tmp_path, config.Training(), Two()).run()
    assert "aux_logits" in caught.value.remedy


def test_each_step_has_its_own_random_state_and_each_epoch_its_own_order(tmp_path: Path) -> None:
    """What a step draws depends on its number alone, not on what earlier ones drew."""

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.seen: list[tuple[float, float]] = []

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen.append((float(torch.rand(())), float(x[:200].sum())))
            y: Tensor = self.linear(x.flatten(1))
            return y

    many, few = Draws(), Draws()
    made(tmp_path, config.Training(epochs=2, batch_size=200), many).run()
    made(tmp_path, config.Training(epochs=2, batch_size=600), few).run()
    assert (len(many.seen), len(few.seen)) == (14, 4)
    assert many.seen[0] == few.seen[0]
    assert many.seen[3][0] == few.seen[3][0]
    assert many.seen[7][1] == few.seen[2][1]
    assert len({draw for draw, _ in many.seen}) == 14
    assert many.seen[0][1] != many.seen[7][1]
