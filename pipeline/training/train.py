"""The two trainings: the dense baseline, and the one with a sparse method. Both start from the same weights."""

from __future__ import annotations

import dataclasses
import itertools
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.config.sparse import function_of
from pipeline.config.task import task_of
from pipeline.data import Dataset
from pipeline.data.dataset import at_once
from pipeline.models import build_for
from pipeline.models.weights import load_weights, save_weights
from pipeline.progress import Progress
from pipeline.results import Trained
from pipeline.surgery import Anatomy
from pipeline.surgery.align import CANDIDATES
from pipeline.surgery.compact import apply_plan
from pipeline.surgery.plan import PLAN, WEIGHTS, plan_before, read_plan
from pipeline.surgery.watch import anatomy
from pipeline.tasks import Task
from pipeline.training.census import save_census
from pipeline.training.compute import Compute, compute_of
from pipeline.training.compute.device import derived_seed, repeatable, torch_device
from pipeline.training.compute.distributed import own_device, together
from pipeline.training.distillation import Teacher
from pipeline.training.hooks import Hooks, Method, Training
from pipeline.training.log.history import History
from pipeline.training.log.loggers import Described, Loggers
from pipeline.training.loop import Loop, steps_per_epoch
from pipeline.training.optimizer.schedule import learning_rate
from pipeline.training.snapshots.checkpoint import Checkpoints
from runtime.errors import UserError
from runtime.files import write_json

Align = int | Literal["auto"]


@dataclass(frozen=True)
class Setting:
    """What both trainings need beside their section."""

    model: config.Model
    data: Dataset
    seed: int
    threads: int
    device: str
    out: Path
    progress: Progress
    checkpoints: Path | None = None
    """Folder of the checkpoints; None for none."""
    task: Task = field(default_factory=task_of)
    distill: config.Distill | None = None
    teacher: Path | None = None
    """Weights of the dense network, which the sparse training learns from as `distill` says."""

    def on(self, device: torch.device) -> Dataset:
        """The data with its batches on the device."""
        train, test, validation = self.data.train, self.data.test, self.data.validation
        held_out = None if validation is None else validation.to(device)
        return dataclasses.replace(self.data, train=train.to(device), test=test.to(device), validation=held_out)

    def after(self, dense: Path, settings: config.Config) -> Setting:
        """Of the sparse training that uses the weights `dense`, as `settings` ask for."""
        model = self.model
        if settings.starts_dense:
            model = model.model_copy(update={"weights": str(dense), "new_head": False})
        return dataclasses.replace(self, model=model, distill=settings.distill, teacher=dense)


def train_dense(section: config.Training, setting: Setting) -> Trained:
    """Writes weights.safetensors and history.jsonl into `setting.out`; without epochs, the weights it is given and an
    empty history. Raises UserError."""
    return _train("dense", section, setting, lambda options, training: Hooks())


def train_sparse(section: config.Sparse, setting: Setting, *, align: Align = 1) -> Trained:
    """With the method of the section. Writes weights.safetensors, history.jsonl, census.safetensors and, where channels
    were removed, plan.json into `setting.out`. `align`: the multiple that surgery will keep channels to. Raises
    UserError."""
    return _train("sparse", section, setting, function_of(section.method), align)


def _train(name: str, section: config.Training, setting: Setting, method: Method, align: Align = 1) -> Trained:
    start, device = time.perf_counter(), own_device(torch_device(setting.device))
    with ExitStack() as stack:
        stack.enter_context(repeatable(setting.threads, device, section.deterministic))
        ranks = stack.enter_context(together(device))
        try:
            loop = _loop(section, setting, compute_of(section, device, ranks), method, align)
            setting.progress.start(name, max(1, loop.sparsifier.steps))
            accuracy = _run(loop)
            dead = loop.sparsifier.final_census()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{device} ran out of memory while training ({str(error).splitlines()[0]})",
                f"room for batches of {section.batch_size}",
                f"lower {name}.batch_size",
            ) from error
        finally:
            setting.progress.stop()
    rows, best = loop.history.rows or [{}], loop.selection.epoch
    state, last = loop.sparsifier.state, rows[-1 if best is None else best - 1]
    plan, sparse = plan_before(state.network), isinstance(section, config.Sparse)
    if ranks.first:
        save_weights(state.network, setting.out / WEIGHTS)
        loop.history.rewrite()  # an empty file where nothing was trained
        if plan is not None:
            write_json(setting.out / PLAN, plan.model_dump(mode="json", by_alias=True))
        if sparse:
            save_census(dead, setting.out / "census.safetensors")
    return Trained(
        weights=setting.out / WEIGHTS,
        plan=None if plan is None else setting.out / PLAN,
        history=setting.out / "history.jsonl",
        census=setting.out / "census.safetensors" if sparse else None,
        accuracy=accuracy,
        epochs=len(loop.history.rows),
        seconds=time.perf_counter() - start,
        channels=last.get("channels", state.anatomy.channels),
        dead=last.get("dead", state.anatomy.dead_count(dead)),
        reached=last.get("reached"),
    )


def _run(loop: Loop) -> float:
    try:
        return loop.run()
    except BaseException:
        loop.history.abandon()
        raise


def _loop(section: config.Training, setting: Setting, compute: Compute, method: Method, align: Align) -> Loop:
    device, ranks = compute.device, compute.ranks

    def fresh(weights: bool = False) -> nn.Module:
        torch.manual_seed(derived_seed(setting.seed, "init"))
        spec = setting.model if weights else setting.model.model_copy(update={"weights": None})
        network = build_for(spec, setting.data)
        _set_momentum(network, section.norm_momentum)
        return network

    network = compute.placed(fresh(weights=True))
    data = setting.on(device)
    watcher = None
    if section.log and ranks.first:
        watcher = Loggers(section.log, described(section, setting), setting.progress.note)
    history = History(setting.out / "history.jsonl" if ranks.first else None, watcher, ranks.mean)
    checkpoints = None if setting.checkpoints is None else Checkpoints(setting.checkpoints)
    if isinstance(section, config.Sparse):
        watched(network, setting.model.name, data.input_shape)
    training = training_of(section, network, data, compute, setting, align)
    hooks = method(section, training)
    progress, task = setting.progress, setting.task
    teacher = _teacher(setting, compute) if isinstance(section, config.Sparse) else None
    more = compute, checkpoints, fresh, task, teacher
    return Loop(section, network, data, hooks, training, history, progress, *more)


def described(section: config.Training, setting: Setting) -> Described:
    """Of what loggers show: `RUN STAGE`, the section's keys, and the network with its seed."""
    stage = setting.out.name.removeprefix(".").removesuffix(".tmp")
    network = {"model": setting.model.name, "model.args": dict(setting.model.args), "seed": setting.seed}
    name = f"{setting.out.resolve().parent.name} {stage}"
    return Described(name, {**network, **section.model_dump(mode="json")}, setting.out, setting.checkpoints)


def _teacher(setting: Setting, compute: Compute) -> Teacher | None:
    if setting.distill is None or setting.teacher is None:
        return None
    spec = setting.model.model_copy(update={"weights": str(setting.teacher), "new_head": False})
    network = build_for(spec, setting.data)
    return Teacher(network, setting.distill, compute, setting.task)


def training_of(
    section: config.Training, network: nn.Module, data: Dataset, compute: Compute, setting: Setting, align: Align = 1
) -> Training:
    """What a method learns of a training over `network` and `data`, which lie on the device of `compute`. With `align`
    auto dead channels stay up to the largest multiple that surgery may choose."""
    steps = steps_per_epoch(data.train, section.batch_size)
    example = (torch.zeros(2, *data.input_shape, device=compute.device),)

    def labelled(step: int, batches: int, batch_size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        seed = derived_seed(setting.seed, "census")
        batch_size = at_once(data.train, batch_size)
        shuffled = data.train.batches(batch_size, seed=seed, epoch=step, part=compute.ranks.part)
        return (((x,), y) for x, y in itertools.islice(shuffled, batches))

    return Training(
        first=weakref.ref(network),
        steps=section.epochs * steps,
        steps_per_epoch=steps,
        rate=lambda step: learning_rate(section, step, steps),
        samples=lambda step, batches, batch_size: (x for x, _ in labelled(step, batches, batch_size)),
        example=example,
        ranks=compute.ranks,
        seed=setting.seed,
        align=1 if align == "auto" else align,
        removal_align=max(CANDIDATES) if align == "auto" else align,
        threads=setting.threads,
        labelled=labelled,
        loss=setting.task.loss,
        note=setting.progress.note,
    )


def _set_momentum(network: nn.Module, momentum: float | None) -> None:
    """Of all batch norms; None leaves them as they are."""
    for module in network.modules():
        if momentum is not None and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def trained_network(model: config.Model, data: Dataset, trained: Trained) -> nn.Module:
    """The network as its training left it, in eval mode on the CPU."""
    spec = model.model_copy(update={"weights": None})
    network = build_for(spec, data)
    if trained.plan is not None:
        network = apply_plan(network, read_plan(trained.plan))
    load_weights(network, trained.weights)
    return network.eval()


def watched(network: nn.Module, name: str, shape: tuple[int, ...]) -> Anatomy:
    """The network's channels that can be watched; `shape` (C, H, W). Raises UserError where there are none."""
    units = anatomy(network, (torch.zeros(2, *shape, device=next(network.parameters()).device),))
    if not units.watch:
        raise UserError(
            units.traced.frozen or f"{name} has no activation that could be watched for dead channels",
            "a network with ReLUs that torch.fx can trace",
            "mend the network, or choose another",
        )
    return units
