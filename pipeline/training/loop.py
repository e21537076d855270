"""The one training loop; what a method adds comes through its hooks.

Everything random follows from the seed and the step, so a training that was killed goes on from its last checkpoint
and ends with the weights it would have had, bit for bit on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.config.task import task_of
from pipeline.data import Dataset, Split
from pipeline.data.augment import mixing, varied
from pipeline.data.dataset import at_once
from pipeline.progress import Progress
from pipeline.tasks import Task
from pipeline.training.compute import Compute
from pipeline.training.compute.device import derived_seed
from pipeline.training.compute.distributed import ALONE, Ranks, demand_equal_shares
from pipeline.training.compute.onednn_workaround import without_onednn
from pipeline.training.distillation import Teacher
from pipeline.training.hooks import Hooks, Training
from pipeline.training.log.history import History
from pipeline.training.optimizer import Optimizer, optimizer_for
from pipeline.training.snapshots.checkpoint import Checkpoints, Snapshot, moments_of, of_first
from pipeline.training.snapshots.selection import Selection, demand_selection
from pipeline.training.sparsifier import Sparsifier
from runtime.measure.judged import Statistics, fraction, joined

EVALUATION_BATCH = 512


@dataclass
class Loop:
    """Everything a training needs; `network` is on the device of `compute`, and so is `data`."""

    section: config.Training
    network: InitVar[nn.Module]
    data: Dataset
    hooks: InitVar[Hooks]
    training: InitVar[Training]
    history: History
    progress: Progress
    compute: Compute = field(default_factory=lambda: Compute(torch.device("cpu")))
    checkpoints: Checkpoints | None = None
    fresh: Callable[[], nn.Module] | None = None
    """Builds the network as it was before any removal; needed with checkpoints."""
    task: Task = field(default_factory=task_of)
    teacher: Teacher | None = None

    def __post_init__(self, network: nn.Module, hooks: Hooks, training: Training) -> None:
        self.seed: int = training.seed
        self.steps_per_epoch: int = training.steps_per_epoch
        demand_equal_shares(self.section.batch_size, len(self.data.train), self.compute.ranks)
        section = self.section
        self._train = varied(self.data, section.sampling, section.auto_augment)
        self._mix = mixing(section.mixup, section.cutmix, soft_classes(self.data, self.task))
        self.scaler = self.compute.scaler()
        demand_selection(section, self.data, hooks)
        optimizer = self._optimizer_of(network)
        self.sparsifier = Sparsifier(network, optimizer, hooks, training, self.compute, section.ema)
        self.selection = Selection(section, self.sparsifier.steps)
        self._silent: set[str] = set()  # outputs that were reported to be dead as a whole
        self._last_epoch = ""  # what the progress says of it while the next one runs
        self._saved_at = time.monotonic()

    @property
    def step(self) -> int:
        """Of the next step; 0 is the first."""
        return self.sparsifier.step_number

    def run(self) -> float:
        """Trains; the metric of the task (0..1) after the last epoch, on the split that choices are made on. One row of
        history an epoch."""
        self._go_on()
        value = self.history.rows[-1][self.task.metric] if self.history.rows else 0.0
        while self.step < self.sparsifier.steps and not self.selection.stops:
            self._train_epoch(len(self.history.rows))
            value = self._end_epoch()
        self.history.end()
        value = self._leave(value)
        if not self.sparsifier.steps:  # given weights, as they are
            return metric_of(self.sparsifier.network, self.data.choosing, self.compute.ranks, self.task)
        return float(value)

    def _train_epoch(self, number: int) -> None:
        """From where it stands to the end of the epoch that its position lies in; `number` counts rows of history."""
        section, ranks, own = self.section, self.compute.ranks, self.sparsifier
        self.sparsifier.train_mode()
        epoch, first = divmod(own.hooks.position(self.step), self.steps_per_epoch)
        batches = self._train.batches(
            section.batch_size, seed=self.seed, epoch=epoch, augment=section.augment, first=first, part=ranks.part
        )
        self.history.begin()
        for place, (x, y) in enumerate(batches, first + 1):
            with without_onednn() if own.state.without_onednn else nullcontext():
                self.history.step(self._step(x, y))
            ends = place == self.steps_per_epoch
            closes = own.due or ends or self.history.window_is_full
            if closes:  # before the census of a removal, which is none of the window's steps
                self.history.end_window(min(section.batch_size, len(self.data.train)), number)
            removal = own.advance((x,))
            if closes:
                self.progress.update(self.step, self._last_epoch + self.history.window_text())
                if removal is not None:
                    self.sparsifier.train_mode()
                    self.history.removed(removal)
                    self.selection.removed()
            if not ends:
                own.between()
            if closes:
                if not ends:
                    self._save()
                self.history.begin()
        assert place == self.steps_per_epoch, (place, self.steps_per_epoch)

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        ranks, own = self.compute.ranks, self.sparsifier
        position = own.hooks.position(self.step)
        torch.manual_seed(derived_seed(self.seed, "step", position * ranks.world + ranks.rank))
        if self._mix is not None:
            x, y = self._mix(x, y)
        with self.compute.autocast():
            outputs = own.state.forward(self.compute.images(x))
        loss = self.task.loss(outputs, y)
        if self.teacher is not None:
            loss = self.teacher.mixed(loss, outputs, x)
        term = own.hooks.penalty(self.step)
        total = loss if term is None else loss + term
        optimizer = own.state.optimizer
        optimizer.zero_grad()
        torch.autograd.backward(total if self.scaler is None else self.scaler.scale(total))
        own.after_step(optimizer.step(own.rate(), self.scaler, partial(own.hooks.after_backward, self.step)))
        return total.detach()

    def _end_epoch(self) -> float:
        own, last = self.sparsifier, self.step - 1
        figures = own.hooks.figures(last)
        name, (network, value, both) = self.task.metric, self._chosen()
        row = self.history.end_epoch({
            **({} if name == "accuracy" else {"metric": name}),
            **({} if self.data.validation is None else {"split": "validation"}),
            name: value,
            "lr": own.rate_of(last),
            "macs": own.state.macs,
            "params": own.state.params,
            **({} if own.whole is None else {"whole": own.whole}),
            **both,
            **figures,
        })  # fmt: skip
        self.selection.offer(row["epoch"], self.step, value, network)
        own.between()
        self._save()
        for name in set(row.get("silent", ())) - self._silent:
            self.progress.note(f"every channel of {name} is dead: one stays")
        self._silent |= set(row.get("silent", ()))
        self._last_epoch = told_of(row, own.steps // self.steps_per_epoch)
        self.progress.update(self.step, self._last_epoch + self.history.window_text())
        return value

    def _chosen(self) -> tuple[nn.Module, float, dict[str, float]]:
        """The network or its average, whichever would be left now; its metric, and that of each where both were
        measured."""
        state, data = self.sparsifier.state, self.data
        network, average = state.network, state.average
        value = None
        if average is None or data.validation is not None:
            value = metric_of(network, data.choosing, self.compute.ranks, self.task)
            if average is None:
                return network, value, {}
        averaged = metric_of(average, data.choosing, self.compute.ranks, self.task)
        if value is None:
            return average, averaged, {}
        name = self.task.metric
        figures = {f"{name}_averaged": averaged, f"{name}_unaveraged": value}
        return (average, averaged, figures) if averaged >= value else (network, value, figures)

    def _leave(self, value: float) -> float:
        """Put the weights that were chosen into the network; their metric."""
        state, best = self.sparsifier.state, self.selection
        if best.epoch is not None:
            self._replace(best.tensors)
            self.progress.note(f"epoch {best.epoch} of {len(self.history.rows)} is the best: its weights stay")
            return best.value
        if state.average is not None and self.history.rows:
            network, value, _ = self._chosen()
            if network is not state.network:
                self._replace(network.state_dict())
        return value

    def _replace(self, weights: Mapping[str, Tensor]) -> None:
        self.sparsifier.network.load_state_dict(weights)
        self.sparsifier.replaced = True

    def _save(self) -> None:
        """A checkpoint where the last one is old enough; by the first process alone."""
        due = time.monotonic() - self._saved_at >= self.section.checkpoint_s
        if self.checkpoints is None or not due or not self.compute.ranks.first:
            return
        tensors, document = self.sparsifier.saved()
        best, record = self.selection.saved()
        scaler = None if self.scaler is None else self.scaler.state_dict()
        loop = {"history": self.history.state(), "scaler": scaler, "selection": record, **document}
        state = self.sparsifier.state
        moments = moments_of(state.network, state.optimizer)
        self.checkpoints.save(Snapshot(self.step, state.network, moments, tensors | best, loop))
        self._saved_at = time.monotonic()

    def _go_on(self) -> None:
        """From the last checkpoint, where there is one."""
        if self.checkpoints is None or self.fresh is None:
            return
        ranks, build = self.compute.ranks, self.sparsifier.hooks.build
        read = self.checkpoints.last(self.fresh, self.progress.note, build) if ranks.first else None
        last = of_first(read, self.fresh, ranks, build)
        if last is None:
            return
        self.progress.note(f"going on from step {last.step}")
        network = self.compute.placed(last.network)
        self.sparsifier.restart(network, self._optimizer_of(network), last.step, last.moments)
        self.sparsifier.restore(last.method, last.records)
        self.history.restore(last.records["history"])
        self.selection.restore(last.method, last.records["selection"])
        if self.scaler is not None and last.records["scaler"] is not None:
            self.scaler.load_state_dict(last.records["scaler"])
        self.progress.resume(self.step)

    def _optimizer_of(self, network: nn.Module) -> Optimizer:
        return optimizer_for(self.section, [p for p in network.parameters() if p.requires_grad])


def soft_classes(data: Dataset, task: Task) -> int | None:
    """How many classes blended labels have; None where targets cannot be blended."""
    return len(data.names) if task.answer is not None or task.targets == "labels" else None


def told_of(row: Mapping[str, Any], epochs: int) -> str:
    """A row of the history for the progress: what every training has, and what its method told of the usual."""
    metric = row.get("metric", "accuracy")
    text = f"epoch {row['epoch']}/{epochs}  {metric} {100 * row[metric]:.2f} %"
    if row.get("dead") is not None:
        text += f"  dead {row['dead']}/{row['channels']}"
    text += "".join(f"  {name} {row[name]:.2g}" for name in ("lambda", "sigma") if name in row)
    return f"{text}  {row['macs'] / 1e6:,.5g} M MACs"


def steps_per_epoch(train: Split, batch_size: int) -> int:
    """A last partial batch is dropped, unless it is the only one."""
    return max(1, len(train) // batch_size)


@torch.no_grad()
def metric_of(model: nn.Module, split: Split, ranks: Ranks = ALONE, task: Task | None = None) -> float:
    """The task's metric on the split's images; eval mode, which is left as it was. Without a task: classification."""
    task, training = task or task_of(), model.training
    model.eval()
    try:
        return _pooled(model, split, task) if task.pooled else _mean_score(model, split, ranks, task)
    finally:
        model.train(training)


def _mean_score(model: nn.Module, split: Split, ranks: Ranks, task: Task) -> float:
    parts = ((x, y) for x, y in split.batches(EVALUATION_BATCH, part=ranks.part) if len(x))
    sums = [task.score(task.outputs_of(model(x)), y).sum(dtype=torch.float64) for x, y in parts]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    own = sum(sums, torch.zeros((), dtype=torch.float64, device=device))
    return float(ranks.sum(own)) / len(split)


def _pooled(model: nn.Module, split: Split, task: Task) -> float:
    """Every process takes all images: a metric of several processes' images is not that of their metrics."""
    assert task.pooled is not None
    parts: list[Statistics] = []
    for x, y in split.batches(at_once(split, EVALUATION_BATCH)):
        each = task.pooled.statistics(task.outputs_of(model(x)), y)
        parts.append(each.cpu().numpy() if isinstance(each, Tensor) else [one.cpu().numpy() for one in each])
    whole = np.ones((1, len(split)), np.int64)
    return fraction(task.pooled.metric(joined(parts, len(split)), whole))
