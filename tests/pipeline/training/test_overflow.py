"""A step of an fp16 training whose gradients overflow is not made, and nothing learns from its gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data import load
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.training.compute import Compute
from pipeline.training.log.history import History
from pipeline.training.loop import Loop
from pipeline.training.methods.demp import demp
from pipeline.training.steering.controller import Steering
from pipeline.training.steering.prunable import MATTERS
from tests.pipeline.training.small import joining

EPOCHS, EPOCH = 3, 14
SCALE = 2.0**10


class Overflowing(Loop):
    """A loop whose gradients are infinite at some steps."""

    def __init__(self, steps: set[int], *args: Any, **kwargs: Any) -> None:
        self.steps, self.seen = steps, 0
        super().__init__(*args, **kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        hooks = [p.register_hook(self._gradient) for p in self.sparsifier.network.parameters()]  # type: ignore[no-untyped-call]
        before = [p.detach().clone() for p in self.sparsifier.network.parameters()]
        loss = super()._step(x, y)
        for hook in hooks:
            hook.remove()
        if self.step in self.steps:
            self.seen += 1
            self.look(before)
        return loss

    def _gradient(self, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, torch.inf) if self.step in self.steps else gradient

    def look(self, before: list[Tensor]) -> None:
        """After a step that was not made, with the parameters before it."""


def trained(folder: Path, steps: set[int], kind: type[Overflowing] = Overflowing, **changes: object) -> Overflowing:
    section = config.sparse_of(**{"epochs": EPOCHS, "batch_size": 100, "lr": 0.01} | changes)
    data = load(config.Data())
    torch.manual_seed(0)
    network = build(config.Model(args={"width": 8}), num_classes=10, input_shape=data.input_shape)
    training = joining(section, seed=0)
    history, compute = History(folder / "history.jsonl"), Compute(torch.device("cpu"))
    made = kind(steps, section, network, data, demp(section, training), training, history, Silent(), compute)
    made.run()
    return made


class Unmoved(Overflowing):
    def look(self, before: list[Tensor]) -> None:
        assert all(torch.equal(p, q) for p, q in zip(self.sparsifier.network.parameters(), before, strict=True))


def test_a_step_that_is_not_made_gets_no_noise(tmp_path: Path) -> None:
    made = trained(tmp_path, {0, 1, 20}, Unmoved, sigma_peak=0.1)
    assert made.seen == 3
    assert made.scaler is not None and made.scaler.get_scale() == SCALE / 8


class Watched(Steering):
    """Looks at the averages whenever channels are picked."""

    picks = 0

    def pick(self, step: int) -> None:
        found = [p.state[MATTERS] for p in self._pairs if MATTERS in p.state]
        assert found and all(bool(torch.isfinite(average).all()) for average in found)
        Watched.picks += 1
        super().pick(step)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steering_takes_in_no_infinite_gradient_and_what_fades_is_gone_in_time(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients overflow in the very first step, in the middle of a period and in the last step of each."""
    monkeypatch.setattr("pipeline.training.methods.demp.Steering", Watched)
    monkeypatch.setattr(Watched, "picks", 0)
    target = {"channels": 0.5, "reached_at": 0.8}
    bounds = Steering(config.Target.model_validate(target), EPOCHS * EPOCH, 1, lambda *_: pytest.fail()).bounds
    assert bounds[1] - bounds[0] > 2
    steps = {0, bounds[0] + 1} | {bound - 1 for bound in bounds}
    made = trained(tmp_path, steps, target=target, optimizer=optimizer)
    assert (made.seen, Watched.picks) == (len(steps), len(bounds))
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["reached"]["channels"] == pytest.approx(0.5, abs=0.03)
    assert rows[-1]["dead"] / rows[-1]["channels"] == pytest.approx(0.5, abs=0.03)
    assert [r["step"] for row in rows for r in row["removals"]] == bounds[1:], "what has faded is cut out at once"
    convolutions = [m for m in made.sparsifier.network.modules() if isinstance(m, nn.Conv2d)]
    assert all(bool(torch.isfinite(m.weight).all()) for m in convolutions)
