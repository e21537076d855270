"""The one training loop; what a method adds comes through its hooks.

Everything random follows from the seed and the step, so a training that was killed goes on from its last checkpoint
and ends with the weights it would have had, bit for bit on a CPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.data import Dataset, Split
from pipeline.progress import Progress
from pipeline.training.checkpoint import Checkpoints, Snapshot, moments_of, of_first, put_moments
from pipeline.training.compute import Compute
from pipeline.training.history import History
from pipeline.training.methods import Method
from pipeline.training.optimizer import optimizer_for
from pipeline.training.ranks import ALONE, Ranks, demand_equal_shares
from pipeline.training.repeatable import derived_seed
from pipeline.training.schedule import learning_rate
from pipeline.training.sound_kernels import without_onednn
from pipeline.training.state import TrainState, removal_of, state_of, without
from runtime.errors import UserError

EVALUATION_BATCH = 512


@dataclass
class Loop:
    """Everything a training needs; `network` is on the device of `compute`, and so is `data`."""

    section: config.Training
    network: InitVar[nn.Module]
    data: Dataset
    method: Method
    seed: int
    history: History
    progress: Progress
    compute: Compute = field(default_factory=lambda: Compute(torch.device("cpu")))
    align: int = 1
    """Removals keep dead channels up to this multiple."""
    checkpoints: Checkpoints | None = None
    fresh: Callable[[], nn.Module] | None = None
    """Builds the network as it was before any removal; needed with checkpoints."""

    def __post_init__(self, network: nn.Module) -> None:
        self.steps_per_epoch = steps_per_epoch(self.data.train, self.section.batch_size)
        demand_equal_shares(self.section.batch_size, len(self.data.train), self.compute.ranks)
        self.scaler = self.compute.scaler()
        self.state = self._state_over(network)
        self.method.bind(self.state)
        self.step = 0
        self.whole: str | None = None  # why nothing can be removed before the end
        self._silent: set[str] = set()  # outputs that were told to be dead as a whole
        self._noted = False  # that a removal could not take any
        self._told = ""  # of the last epoch, while the next one runs
        self._saved_at = time.monotonic()

    def run(self) -> float:
        """Trains; the accuracy (fraction) on the test split after the last epoch. One row of history an epoch."""
        self._go_on()
        accuracy = self.history.rows[-1]["accuracy"] if self.history.rows else 0.0
        while self.step < self.section.epochs * self.steps_per_epoch:
            epoch = self.step // self.steps_per_epoch
            self._train_epoch(epoch)
            accuracy = self._end_epoch(epoch)
        self.history.end()
        return float(accuracy)

    def _train_epoch(self, epoch: int) -> None:
        """From where it stands to the epoch's end."""
        section, ranks = self.section, self.compute.ranks
        self._train_mode()
        first = self.step - epoch * self.steps_per_epoch
        batches = self.data.train.batches(
            section.batch_size, seed=self.seed, epoch=epoch, augment=section.augment, first=first, part=ranks.part
        )
        self.history.begin()
        for x, y in batches:
            with without_onednn() if self.state.without_onednn else nullcontext():
                self.history.step(self._step(x, y))
            due, ends = self.method.due(self.step), (self.step + 1) % self.steps_per_epoch == 0
            closes = self.history.window_is_full or ends or due
            if closes:  # before the census of a removal, which is none of the window's steps
                self.history.end_window(min(section.batch_size, len(self.data.train)), epoch)
            dead = self.method.removal(self.step)
            assert due or dead is None, "a removal is due"
            self.step += 1
            if closes:
                self.progress.update(self.step, self._told + self.history.window_text())
                if dead is not None:
                    self._remove(dead, x)
                if not ends:
                    self._save()
                self.history.begin()
        assert self.step == (epoch + 1) * self.steps_per_epoch, (self.step, self.steps_per_epoch)

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        ranks = self.compute.ranks
        torch.manual_seed(derived_seed(self.seed, "step", self.step * ranks.world + ranks.rank))
        with self.compute.autocast():
            logits = self.state.forward(self.compute.images(x))
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the network answers with {type(logits).__name__} while it trains",
                "one tensor of logits (N, K)",
                "switch its auxiliary outputs off, e.g. model.args: {aux_logits: false}",
            )
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.section.label_smoothing)
        term = self.method.loss_term(self.step)
        total = loss if term is None else loss + term
        self.state.optimizer.zero_grad()
        torch.autograd.backward(total if self.scaler is None else self.scaler.scale(total))
        stepped = self.state.optimizer.step(learning_rate(self.section, self.step, self.steps_per_epoch), self.scaler)
        self.method.after_step(self.step, stepped)
        return total.detach()

    def _remove(self, dead: Any, x: Tensor) -> None:
        """Cut the dead channels out; a network that cannot be cut while it trains stays whole, and that is told."""
        start, before, difference = time.perf_counter(), self.state, 0.0
        count = 0 if self.whole is not None else before.anatomy.dead_count(dead)
        if count:
            try:
                self.state, difference = without(
                    before, dead, x, self.data.input_shape, self.compute, self.align, self.method.pinned()
                )
            except UserError as error:
                self.whole = error.found
                self.progress.note(f"dead channels stay until the end: {self.whole}")
        self.method.bind(self.state)
        if count and self.state is before and self.whole is None and not self._noted:
            self._noted = True
            why = f"a gradient reaches them, or they fill a multiple of {self.align}"
            self.progress.note(f"{count} dead channels stay for now: {why}")
        if self.state is not before:
            channels = before.anatomy.channels
            del before
            gc.collect()  # graphs hold each other: until then the old network's memory would stay taken
            self._train_mode()
            self.history.removed(removal_of(channels, self.state, difference, self.step, start))

    def _end_epoch(self, epoch: int) -> float:
        last = self.step - 1
        figures = self.method.epoch_end(epoch, last)
        network = self.state.network
        accuracy = accuracy_of(network, self.data.test, self.compute.ranks)
        row = self.history.end_epoch({
            "accuracy": accuracy,
            "lr": learning_rate(self.section, last, self.steps_per_epoch),
            "macs": self.state.macs,
            "params": self.state.params,
            **({} if self.whole is None else {"whole": self.whole}),
            **figures,
        })  # fmt: skip
        self._save()
        for name in set(row.get("silent", ())) - self._silent:
            self.progress.note(f"every channel of {name} is dead: one stays")
        self._silent |= set(row.get("silent", ()))
        self._told = told_of(row, self.section.epochs)
        self.progress.update(self.step, self._told + self.history.window_text())
        return accuracy

    def _train_mode(self) -> None:
        self.state.network.train()
        if isinstance(self.state.forward, nn.Module):
            self.state.forward.train()

    def _save(self) -> None:
        """A checkpoint where the last one is old enough; by the first process alone."""
        due = time.monotonic() - self._saved_at >= self.section.checkpoint_s
        if self.checkpoints is None or not due or not self.compute.ranks.first:
            return
        tensors, told = self.method.saved()
        scaler = None if self.scaler is None else self.scaler.state_dict()
        loop = {"history": self.history.state(), "method": told, "scaler": scaler, "whole": self.whole}
        network = self.state.network
        self.checkpoints.save(Snapshot(self.step, network, moments_of(network, self.state.optimizer), tensors, loop))
        self._saved_at = time.monotonic()

    def _go_on(self) -> None:
        """From the last checkpoint, where there is one."""
        if self.checkpoints is None or self.fresh is None:
            return
        ranks = self.compute.ranks
        read = self.checkpoints.last(self.fresh, self.progress.note) if ranks.first else None
        last = of_first(read, self.fresh, ranks)
        if last is None:
            return
        self.progress.note(f"going on from step {last.step}")
        self.state = self._state_over(self.compute.placed(last.network))
        put_moments(self.state.network, self.state.optimizer, last.moments)
        self.method.bind(self.state)
        self.method.restore(last.method, last.told["method"])
        self.history.restore(last.told["history"])
        if self.scaler is not None and last.told["scaler"] is not None:
            self.scaler.load_state_dict(last.told["scaler"])
        self.step, self.whole = last.step, last.told["whole"]
        self.progress.resume(self.step)

    def _state_over(self, network: nn.Module) -> TrainState:
        optimizer = optimizer_for(self.section, [p for p in network.parameters() if p.requires_grad])
        return state_of(network, optimizer, self.data.input_shape, self.compute)


def told_of(row: Mapping[str, Any], epochs: int) -> str:
    """A row of the history for the progress: what every training has, and what its method told of the usual."""
    text = f"epoch {row['epoch']}/{epochs}  accuracy {100 * row['accuracy']:.2f} %"
    if row.get("dead") is not None:
        text += f"  dead {row['dead']}/{row['channels']}"
    text += "".join(f"  {name} {row[name]:.2g}" for name in ("lambda", "sigma") if name in row)
    return f"{text}  {row['macs'] / 1e6:,.5g} M MACs"


def steps_per_epoch(train: Split, batch_size: int) -> int:
    """A last partial batch is dropped, unless it is the only one."""
    return max(1, len(train) // batch_size)


@torch.no_grad()
def accuracy_of(model: nn.Module, split: Split, ranks: Ranks = ALONE) -> float:
    """Fraction of the split whose largest logit is the label's; eval mode, which is left as it was."""
    training = model.training
    model.eval()
    try:
        parts = ((x, y) for x, y in split.batches(EVALUATION_BATCH, part=ranks.part) if len(x))
        right = [(model(x).argmax(1) == y).sum() for x, y in parts]
    finally:
        model.train(training)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    own = sum(right, torch.zeros((), dtype=torch.int64, device=device))
    return int(ranks.sum(own)) / len(split)
