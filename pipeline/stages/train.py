"""Stages 10 and 20: the dense baseline and the sparse training. Both start from the same weights.

Under torchrun the first process brings the run folder up to date, and the others join its trainings:
torchrun --nproc-per-node 2 -m demport run CONFIG --out DIR
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.task import task_of
from pipeline.progress import Silent
from pipeline.stages import Run, Stage, tree_of
from pipeline.workspace import fingerprint
from runtime import device as machine
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.data import Dataset
    from pipeline.results import Trained
    from pipeline.tasks import Task
    from pipeline.training.train import Setting

KINDS = {"class": "one class", "labels": "any number of labels", "map": "a mask of classes", "boxes": "boxes"}


def data_and_model(run: Run) -> Mapping[str, Any]:
    """What both trainings read: the task, the images, the network and its starting weights, by their content."""
    tree = tree_of(run.config)
    return {key: tree[key] for key in ("data", "model", "task", "seed", "threads")} | {"content": dict(run.content)}


def removals(run: Run) -> Mapping[str, Any]:
    """And a method of one's own; where channels are removed on the way, the alignment: channels that surgery
    may keep stay until then."""
    section = run.config.sparse
    align = {"align": run.config.surgery.align} if section.removes else {}
    place = {"machine": machine.fingerprint()} if section.timed else {}
    return {**data_and_model(run), **fingerprint.of_method(section.method), **align, **place}


def training_bytes(run: Run, *before: object) -> int:
    """What a training writes: its weights, 1 MiB for history and census, and two checkpoints with two moments each, and
    with averaged and best weights where there are any."""
    from pipeline.models import build_for

    network = build_for(run.config.model, run.data())
    sizes: list[int] = [tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()]
    sections = (run.config.dense, run.config.sparse)
    more = max((s.ema is not None) + (s.best_epoch or s.patience is not None) for s in sections)
    return 2**20 + (7 + 2 * more) * sum(sizes)


def dense(run: Run, out: Path, checkpoints: Path) -> Trained:
    """Stage 10. What the sparse training needs is asked before, where it is to follow. Raises UserError."""
    from pipeline.training.possible import demand_possible
    from pipeline.training.train import train_dense

    _demand_network(run)
    if run.until != "10-dense":
        demand_possible(run.config.sparse, _setting(run, out, checkpoints), run.config.surgery.align)
    announce("dense", checkpoints)
    return train_dense(run.config.dense, _setting(run, out, checkpoints))


DENSE = Stage(
    "10-dense",
    dense,
    "dense",
    libraries="torch numpy",
    version=2,
    also=data_and_model,
    needs_bytes=training_bytes,
    checkpoints=True,
)


def uses_dense(config: Config) -> bool:
    """Whether stage 20 depends on stage 10: it starts from its network, or learns from it."""
    return config.starts_dense or config.distill is not None


def sparse(run: Run, *before: Any) -> Trained:
    """Stage 20, of the dense training where it uses that, and its two folders. Raises UserError."""
    from pipeline.training.train import train_sparse

    *dense, out, checkpoints = before
    weights: Path | None = dense[0].weights if dense else None
    announce("sparse", checkpoints, weights)
    setting = _setting(run, out, checkpoints)
    setting = setting if weights is None else setting.after(weights, run.config)
    return train_sparse(run.config.sparse, setting, align=run.config.surgery.align)


SPARSE = Stage(
    "20-sparse",
    sparse,
    "sparse",
    libraries="torch numpy",
    version=2,
    also=removals,
    needs_bytes=training_bytes,
    checkpoints=True,
)


def _demand_network(run: Run) -> None:
    """UserError where the network will not do, for a reason that is known before any training."""
    import torch

    from pipeline.models import build_for
    from pipeline.models.soundness import demand_exportable, demand_sound, demand_task

    config, data, task = run.config, run.data(), task_of(run.config.task)
    demand_targets(config.task.name, task, data)
    with torch.random.fork_rng(devices=[]):
        network = build_for(config.model, data)
    demand_task(network, config.model.name, task, data)
    if run.until == "70-check":
        fingerprint.try_check(config.check, data.input_shape)
    demand_sound(network, config.model.name, data.input_shape, config.dense.batch_size)
    if run.until >= "40-onnx":
        exported, shape, then = task.network(network), data.input_shape, _demand_lower(run, task)
        demand_exportable(exported, config.model.name, shape, config.onnx.opset, then)


def _demand_lower(run: Run, task: Task) -> Callable[[Path], None]:
    """What asks whether an ONNX file of the network can be written in the lower precisions, and trained in int8 where
    it is to be."""
    section, name, shape = run.config.precision, run.config.model.name, run.data().input_shape

    def demand(path: Path) -> None:
        if run.until < "55-precision":
            return
        if section.written:
            from export.precision.int8 import Calibration
            from export.precision.rehearsal import demand_lower

            calibration = Calibration(**section.calibration.ranges, runtime=section.int8_for)
            demand_lower(path, name, shape, section.written, calibration)
        if section.qat is not None:
            from pipeline.training.quantisation.network import demand_trainable

            demand_trainable(path, name=name, task=task)

    return demand


def demand_targets(name: str, task: Task, data: Dataset) -> None:
    """UserError where the data have other targets than the task `name` learns."""
    if data.targets != task.targets:
        has, wants = (KINDS.get(kind, f"`{kind}`") for kind in (data.targets, task.targets))
        raise UserError(
            f"task.name is {name}, and the data have {has} for each image",
            wants,
            "choose the task of the data, or data of the task: see docs/tasks.md",
        )


def _setting(run: Run, out: Path, checkpoints: Path) -> Setting:
    from pipeline.training.train import Setting

    config, progress, task = run.config, run.progress, task_of(run.config.task, run.data())
    basics = config.model, run.data(), config.seed, config.threads, run.device
    return Setting(*basics, out, progress, checkpoints, task)


@contextmanager
def lead(device: str) -> Iterator[Callable[[], None]]:
    """Joins the other processes; yields what sends them home, which happens at the end at the latest."""
    from pipeline.training.compute.device import torch_device
    from pipeline.training.compute.distributed import own_device, together

    with together(own_device(torch_device(device))) as ranks:
        sent: list[bool] = []

        def dismiss() -> None:
            if not sent:
                sent.append(True)
                ranks.agree(None)

        try:
            yield dismiss
        except BaseException:
            with suppress(RuntimeError):  # they may be gone, and the first error is the one to report
                dismiss()
            raise
        dismiss()


def announce(training: str, checkpoints: Path, dense: Path | None = None) -> None:
    """Name to the others the training that begins, the folder of its checkpoints, and the dense weights it uses."""
    from pipeline.training.compute.distributed import expected_ranks

    expected_ranks().agree(
        {
            "training": training,
            "checkpoints": str(checkpoints),
            "dense": None if dense is None else str(dense),
        }
    )


def follow(config: Config, data: Callable[[], Dataset], device: str) -> None:
    """What every other process does: train with the first one until it is sent home; nothing is written."""
    from pipeline.training.compute.device import torch_device
    from pipeline.training.compute.distributed import own_device, together
    from pipeline.training.train import Setting, train_dense, train_sparse

    with together(own_device(torch_device(device))) as ranks, tempfile.TemporaryDirectory() as out:
        while (order := ranks.agree(None)) is not None:
            folders = Path(out), Silent(), Path(order["checkpoints"]), task_of(config.task, data())
            setting = Setting(config.model, data(), config.seed, config.threads, device, *folders)
            if order["training"] == "dense":
                train_dense(config.dense, setting)
            else:
                setting = setting if order["dense"] is None else setting.after(Path(order["dense"]), config)
                train_sparse(config.sparse, setting, align=config.surgery.align)
