"""The two training stages: the dense baseline and DemP. Both start from the same weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline import config
from pipeline.data import Dataset, Split
from pipeline.models import build, save_weights
from pipeline.progress import Progress
from pipeline.surgery import Anatomy, anatomy
from pipeline.training.census import save_census
from pipeline.training.loop import Loop, steps_per_epoch
from pipeline.training.methods import Method
from pipeline.training.methods.demp import Demp
from pipeline.training.methods.plain import Plain
from pipeline.training.repeatable import derived_seed, repeatable, torch_device
from runtime.errors import UserError


@dataclass(frozen=True)
class Trained:
    weights: Path
    """safetensors."""
    history: Path
    """JSON lines, one an epoch: epoch, loss, accuracy, lr, seconds, images_per_s; of DemP also lambda, sigma, dead,
    channels, dead_by_layer as of the last census."""
    census: Path | None
    """safetensors: watched output -> uint8, 1 = dead in the last census; DemP only."""
    accuracy: float
    """Fraction of the test split, 0..1, after the last epoch."""
    epochs: int
    seconds: float
    channels: int
    """Output channels of all layers whose channels can go."""
    dead: int
    """Those nobody would miss, by the last census."""


def train_dense(
    section: config.Training,
    model: config.Model,
    data: Dataset,
    *,
    seed: int,
    threads: int,
    device: str,
    out: Path,
    progress: Progress,
) -> Trained:
    """Writes weights.safetensors and history.jsonl into `out`. Raises UserError."""

    def method(network: nn.Module, units: Anatomy, train: Split) -> Method:
        return Plain(units, train)

    where = torch_device(device)
    with repeatable(threads, where):
        return _train(Task("dense", section, model, seed, where, out, progress), data, method)


def train_demp(
    section: config.Demp,
    model: config.Model,
    data: Dataset,
    *,
    seed: int,
    threads: int,
    device: str,
    out: Path,
    progress: Progress,
) -> Trained:
    """Writes weights.safetensors, history.jsonl and census.safetensors into `out`. Raises UserError."""

    def method(network: nn.Module, units: Anatomy, train: Split) -> Method:
        if not units.watch:
            raise UserError(
                units.traced.frozen or f"{model.name} has no activation that could be watched for dead channels",
                "a network with ReLUs that torch.fx can trace",
                "mend the network, or choose another",
            )
        total = section.epochs * steps_per_epoch(train, section.batch_size)
        return Demp(section, network, units, train, seed=seed, total_steps=total)

    where = torch_device(device)
    with repeatable(threads, where):
        return _train(Task("demp", section, model, seed, where, out, progress), data, method)


@dataclass(frozen=True)
class Task:
    name: str
    section: config.Training
    model: config.Model
    seed: int
    device: torch.device
    out: Path
    progress: Progress


def _train(task: Task, data: Dataset, method_of: Callable[[nn.Module, Anatomy, Split], Method]) -> Trained:
    start = time.perf_counter()
    torch.manual_seed(derived_seed(task.seed, "init"))
    network = build(task.model, num_classes=len(data.names), input_shape=data.input_shape).to(task.device)
    data = dataclasses.replace(data, train=data.train.to(task.device), test=data.test.to(task.device))
    units = anatomy(network, (torch.zeros(2, *data.input_shape, device=task.device),))
    method = method_of(network, units, data.train)
    history, weights, census = (
        task.out / name for name in ("history.jsonl", "weights.safetensors", "census.safetensors")
    )
    loop = Loop(task.section, network, data, method, task.seed, history, task.progress)
    task.progress.start(task.name, task.section.epochs * loop.steps_per_epoch)
    try:
        accuracy = loop.run()
        dead = method.end()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{task.device} ran out of memory while training ({str(error).splitlines()[0]})",
            f"room for batches of {task.section.batch_size}",
            f"lower {task.name}.batch_size",
        ) from error
    finally:
        task.progress.stop()
    save_weights(network, weights)
    if pruning := isinstance(task.section, config.Demp):
        save_census(dead, census)
    return Trained(
        weights,
        history,
        census if pruning else None,
        accuracy,
        task.section.epochs,
        time.perf_counter() - start,
        units.channels,
        units.dead_count(dead),
    )
