"""The one training loop; what a method adds comes through its hooks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.data import Dataset, Split
from pipeline.progress import Progress
from pipeline.training.methods import Method
from pipeline.training.optimizer import Optimizer, optimizer_for
from pipeline.training.repeatable import derived_seed
from pipeline.training.schedule import learning_rate
from runtime.errors import UserError

EVALUATION_BATCH = 512
LOSS_CHECK_STEPS = 50
"""Reading the loss waits for the device, so it is read only this often."""


@dataclass
class Loop:
    """Everything a training needs; `model` and `data` lie on one device."""

    section: config.Training
    model: nn.Module
    data: Dataset
    method: Method
    seed: int
    history: Path
    progress: Progress

    def __post_init__(self) -> None:
        self.optimizer: Optimizer = optimizer_for(self.section, [p for p in self.model.parameters() if p.requires_grad])
        self.steps_per_epoch = steps_per_epoch(self.data.train, self.section.batch_size)

    def run(self) -> float:
        """Trains; the accuracy (fraction) on the test split after the last epoch. One line of history an epoch."""
        accuracy = 0.0
        with self.history.open("w", encoding="utf-8") as history:
            for epoch in range(self.section.epochs):
                start = time.perf_counter()
                losses = self._train_epoch(epoch)
                loss = float(losses.double().mean())
                trained_s = time.perf_counter() - start
                last_step = (epoch + 1) * self.steps_per_epoch - 1
                figures = self.method.epoch_end(epoch, last_step)
                accuracy = accuracy_of(self.model, self.data.test)
                images = min(len(self.data.train), self.section.batch_size) * self.steps_per_epoch
                row = {
                    "epoch": epoch + 1,
                    "loss": loss,
                    "accuracy": accuracy,
                    "lr": learning_rate(self.section, last_step, self.steps_per_epoch),
                    "seconds": time.perf_counter() - start,
                    "images_per_s": images / trained_s,
                    **figures,
                }
                history.write(json.dumps(row, allow_nan=False) + "\n")
                history.flush()
                self.progress.update(last_step + 1, self._said(row))
        return accuracy

    def _train_epoch(self, epoch: int) -> Tensor:
        """The loss of each step, on the device."""
        self.model.train()
        torch.manual_seed(derived_seed(self.seed, "step", epoch))
        losses: list[Tensor] = []
        batches = self.data.train.batches(
            self.section.batch_size, seed=self.seed, epoch=epoch, augment=self.section.augment
        )
        for x, y in batches:
            step = epoch * self.steps_per_epoch + len(losses)
            losses.append(self._step(x, y, step))
            if len(losses) % LOSS_CHECK_STEPS == 0 or len(losses) == self.steps_per_epoch:
                _demand_finite(losses, epoch)
                self.progress.update(step + 1)
        assert len(losses) == self.steps_per_epoch, (len(losses), self.steps_per_epoch)
        return torch.stack(losses)

    def _step(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        logits = self.model(x)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the network answers with {type(logits).__name__} while it trains",
                "one tensor of logits (N, K)",
                "switch its auxiliary outputs off, e.g. model.args: {aux_logits: false}",
            )
        loss = F.cross_entropy(logits, y, label_smoothing=self.section.label_smoothing)
        term = self.method.loss_term(step)
        total = loss if term is None else loss + term
        self.optimizer.zero_grad()
        torch.autograd.backward(total)
        self.optimizer.step(learning_rate(self.section, step, self.steps_per_epoch))
        self.method.after_step(step)
        return total.detach()

    def _said(self, row: dict[str, Any]) -> str:
        text = f"epoch {row['epoch']}/{self.section.epochs}  accuracy {100 * row['accuracy']:.2f} %"
        return text if row.get("dead") is None else f"{text}  dead {row['dead']}/{row['channels']}"


def steps_per_epoch(train: Split, batch_size: int) -> int:
    """A last partial batch is dropped, unless it is the only one."""
    return max(1, len(train) // batch_size)


@torch.no_grad()
def accuracy_of(model: nn.Module, split: Split) -> float:
    """Fraction of the split whose largest logit is the label's; eval mode, which is left as it was."""
    training = model.training
    model.eval()
    try:
        right = [(model(x).argmax(1) == y).sum() for x, y in split.batches(EVALUATION_BATCH)]
    finally:
        model.train(training)
    return int(torch.stack(right).sum()) / len(split)


def _demand_finite(losses: Sequence[Tensor], epoch: int) -> None:
    recent = torch.stack(list(losses[-LOSS_CHECK_STEPS:]))
    bad = ~torch.isfinite(recent)
    if bool(bad.any()):
        step = len(losses) - len(recent) + int(bad.to(torch.uint8).argmax())
        raise UserError(
            f"the loss is {float(recent[bad][0])} in epoch {epoch + 1}, step {step + 1}",
            "a finite loss",
            "lower lr (or lambda_peak), or look for extreme pixels in the data",
        )
