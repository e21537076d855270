"""The two training stages: the dense baseline and DemP. Both start from the same weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from export.files import write_json
from pipeline import config
from pipeline.data import Dataset
from pipeline.models import build, save_weights
from pipeline.progress import Progress
from pipeline.surgery.align import CANDIDATES
from pipeline.surgery.plan import PLAN, WEIGHTS, plan_before
from pipeline.training.census import save_census
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.compute import compute_of
from pipeline.training.history import History
from pipeline.training.latency import Stopwatch
from pipeline.training.loop import Loop, steps_per_epoch
from pipeline.training.methods import Method
from pipeline.training.methods.demp import Demp
from pipeline.training.methods.plain import Plain
from pipeline.training.possible import watched
from pipeline.training.ranks import Ranks, own_device, together
from pipeline.training.repeatable import derived_seed, repeatable, torch_device
from runtime.errors import UserError


@dataclass(frozen=True)
class Trained:
    weights: Path
    """safetensors; of the network that `plan` leaves, where there is one."""
    plan: Path | None
    """Of the channels removed during the training; None where none was."""
    history: Path
    """JSON lines, one an epoch: epoch, loss, accuracy, lr, seconds, images_per_s, macs, params, removals; of DemP also
    lambda, sigma, channels and those dead (as of the last census) and removed, also by layer, and with a target where
    it stands."""
    census: Path | None
    """safetensors: watched output -> uint8, 1 = dead in the last census; DemP only."""
    accuracy: float
    """Fraction of the test split, 0..1, after the last epoch."""
    epochs: int
    seconds: float
    channels: int
    """Output channels of all layers whose channels can go, in the dense network."""
    dead: int
    """Those nobody would miss, by the last census; removed ones included."""
    reached: dict[str, float] | None
    """Of a steered training: `macs` and `channels` as shares of the dense network; where a latency was asked for,
    `dense_latency_ms`, of the dense network as the training began. What it came to, surgery's network shows."""


Align = int | Literal["auto"]


@dataclass(frozen=True)
class Task:
    """What both trainings need beside their section."""

    model: config.Model
    data: Dataset
    seed: int
    threads: int
    device: str
    out: Path
    progress: Progress
    kept: Path | None = None
    """Where checkpoints lie; None for none."""


def train_dense(section: config.Training, task: Task) -> Trained:
    """Writes weights.safetensors and history.jsonl into `task.out`. Raises UserError."""

    def method(data: Dataset, network: nn.Module, ranks: Ranks) -> Method:
        return Plain(data.train, ranks)

    return _train("dense", section, task, method)


def train_demp(section: config.Demp, task: Task, *, align: Align = 1) -> Trained:
    """Writes weights.safetensors, history.jsonl, census.safetensors and, where channels were removed, plan.json into
    `task.out`. `align`: the multiple that surgery will keep channels to. Raises UserError."""

    def method(data: Dataset, network: nn.Module, ranks: Ranks) -> Method:
        watched(network, task.model.name, data.input_shape)
        target = section.target
        stopwatch = Stopwatch(
            data.input_shape, target.batch if target else 32, target.backend if target else "onnxruntime", task.threads
        )
        steps = steps_per_epoch(data.train, section.batch_size)
        known = 1 if align == "auto" else align
        return Demp(
            section, data.train, stopwatch, seed=task.seed, steps_per_epoch=steps, align=known, ranks=ranks,
            note=task.progress.note,
        )  # fmt: skip

    return _train("demp", section, task, method, max(CANDIDATES) if align == "auto" else align)


def _train(
    name: str,
    section: config.Training,
    task: Task,
    method_of: Callable[[Dataset, nn.Module, Ranks], Method],
    align: int = 1,
) -> Trained:
    start, device = time.perf_counter(), own_device(torch_device(task.device))
    with ExitStack() as stack:
        stack.enter_context(repeatable(task.threads, device, section.deterministic))
        ranks = stack.enter_context(together(device))
        try:
            loop = _loop(section, task, device, ranks, method_of, align)
            task.progress.start(name, section.epochs * loop.steps_per_epoch)
            accuracy = loop.run()
            dead = loop.method.end()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{device} ran out of memory while training ({str(error).splitlines()[0]})",
                f"room for batches of {section.batch_size}",
                f"lower {name}.batch_size",
            ) from error
        finally:
            task.progress.stop()
    network, last = loop.state.network, loop.history.rows[-1]
    plan = plan_before(network)
    if ranks.first:
        save_weights(network, task.out / WEIGHTS)
        if plan is not None:
            write_json(task.out / PLAN, plan.model_dump(mode="json", by_alias=True))
        if isinstance(section, config.Demp):
            save_census(dead, task.out / "census.safetensors")
    units = loop.state.anatomy
    return Trained(
        weights=task.out / WEIGHTS,
        plan=None if plan is None else task.out / PLAN,
        history=task.out / "history.jsonl",
        census=task.out / "census.safetensors" if isinstance(section, config.Demp) else None,
        accuracy=accuracy,
        epochs=section.epochs,
        seconds=time.perf_counter() - start,
        channels=last.get("channels", units.channels),
        dead=last.get("dead", units.dead_count(dead)),
        reached=last.get("reached"),
    )


def _loop(
    section: config.Training,
    task: Task,
    device: torch.device,
    ranks: Ranks,
    method_of: Callable[[Dataset, nn.Module, Ranks], Method],
    align: int,
) -> Loop:
    compute = compute_of(section, device, ranks)

    def fresh(weights: bool = False) -> nn.Module:
        torch.manual_seed(derived_seed(task.seed, "init"))
        spec = task.model if weights else task.model.model_copy(update={"weights": None})
        made = build(spec, num_classes=len(task.data.names), input_shape=task.data.input_shape)
        _set_momentum(made, section.norm_momentum)
        return made

    network = compute.placed(fresh(weights=True))
    data = dataclasses.replace(task.data, train=task.data.train.to(device), test=task.data.test.to(device))
    watcher = None
    if section.tensorboard and ranks.first:
        from pipeline.training.tensorboard import TensorBoard

        watcher = TensorBoard(task.out / "tensorboard")
    history = History(task.out / "history.jsonl" if ranks.first else None, watcher, ranks.mean)
    checkpoints = None if task.kept is None else Checkpoints(task.kept)
    method = method_of(data, network, ranks)
    return Loop(section, network, data, method, task.seed, history, task.progress, compute, align, checkpoints, fresh)


def _set_momentum(network: nn.Module, momentum: float | None) -> None:
    """Of all batch norms; None leaves them as they are."""
    for module in network.modules():
        if momentum is not None and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def trained_network(model: config.Model, data: Dataset, trained: Trained) -> nn.Module:
    """The network as its training left it, in eval mode on the CPU."""
    from pipeline.models import load_weights
    from pipeline.surgery.plan import apply_plan, read_plan

    spec = model.model_copy(update={"weights": None})
    network = build(spec, num_classes=len(data.names), input_shape=data.input_shape)
    if trained.plan is not None:
        network = apply_plan(network, read_plan(trained.plan))
    load_weights(network, trained.weights)
    return network.eval()
