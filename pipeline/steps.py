"""What each stage does, as one call: gathers a stage's inputs from the folders before it and calls its function.

Nothing heavy is imported before a stage runs, so a run that is up to date costs no import of torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.files import sha256
from pipeline.files import bytes_in

if TYPE_CHECKING:
    from torch import nn

    from pipeline.check import Checked
    from pipeline.config import Config
    from pipeline.data import Dataset
    from pipeline.exporting import CastGraphs, Engines, Exported, SimplifiedGraphs
    from pipeline.progress import Progress
    from pipeline.surgery.stage import Cut
    from pipeline.training.stage import Task as TrainingTask
    from pipeline.training.stage import Trained
    from pipeline.workspace import Done
    from runtime.backend import DeviceName
    from runtime.gate import Gate

Data = Callable[[], "Dataset"]
"""The data set, read when it is first asked for."""


@dataclass(frozen=True)
class Task:
    """What every stage may use."""

    config: Config
    data: Data
    device: DeviceName
    progress: Progress
    until: str
    """The last stage that is asked for."""


def dense(task: Task, out: Path, kept: Path) -> Trained:
    from pipeline.training.crew import announce
    from pipeline.training.possible import demand_possible
    from pipeline.training.repeatable import torch_device
    from pipeline.training.stage import train_dense

    if task.until != "10-dense":
        demand_possible(task.config.demp, task.config.model, task.data(), torch_device(task.device))
    announce("dense", kept)
    return train_dense(task.config.dense, training(task, out, kept))


def demp(task: Task, out: Path, kept: Path) -> Trained:
    from pipeline.training.crew import announce
    from pipeline.training.stage import train_demp

    announce("demp", kept)
    return train_demp(task.config.demp, training(task, out, kept), align=task.config.surgery.align)


def training(task: Task, out: Path, kept: Path) -> TrainingTask:
    from pipeline.training.stage import Task as TrainingTask

    config = task.config
    return TrainingTask(config.model, task.data(), config.seed, config.threads, task.device, out, task.progress, kept)


def training_bytes(task: Task) -> int:
    """What a training writes: its weights, 1 MiB for history and census, and two checkpoints with two moments each."""
    from pipeline.models import build

    data = task.data()
    network = build(task.config.model, num_classes=len(data.names), input_shape=data.input_shape)
    sizes: list[int] = [tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()]
    return 2**20 + 7 * sum(sizes)


def surgery(task: Task, trained: Done, out: Path) -> Cut:
    from pipeline.surgery.align import timing_of
    from pipeline.surgery.stage import cut
    from pipeline.training.stage import Trained

    config = task.config
    return cut(
        config.surgery,
        config.model,
        task.data(),
        trained.result(Trained),
        threads=config.threads,
        timing=timing_of(config.check, task.device),
        out=out,
        progress=task.progress,
    )


def onnx(task: Task, trained: Done, cut: Done, out: Path) -> Exported:
    from pipeline.exporting import export_graphs, samples_of

    data = task.data()
    metadata = {
        "demport.model": task.config.model.name,
        "demport.classes": json.dumps(list(data.names)),
        "demport.mean": json.dumps(list(data.mean)),
        "demport.std": json.dumps(list(data.std)),
        "demport.scale": json.dumps(data.scale),
    }
    pair = dense_network(task, trained), compact_network(cut)
    plan = sha256(cut.folder / "plan.json")
    return export_graphs(task.config.onnx, *pair, samples_of(data.test), metadata, plan, out)


def simplify(task: Task, exported: Done, out: Path) -> SimplifiedGraphs:
    from pipeline.exporting import Exported, samples_of, simplify_graphs

    return simplify_graphs(task.config.simplify, exported.result(Exported), samples_of(task.data().test), out)


def precision(task: Task, simplified: Done, out: Path) -> CastGraphs:
    from pipeline.exporting import SimplifiedGraphs
    from pipeline.lowering import lower_graphs, serve_graphs

    graphs, config = simplified.result(SimplifiedGraphs), task.config
    lower = lower_graphs(config.precision, graphs, task.data(), task.device, out, task.progress)
    return serve_graphs(config.serving, graphs, lower, task.data(), out)


def engine(task: Task, cut: Done, simplified: Done, casts: Done, out: Path) -> Engines:
    from pipeline.exporting import CastGraphs, SimplifiedGraphs, build_engines

    graphs = simplified.result(SimplifiedGraphs), casts.result(CastGraphs)
    return build_engines(task.config.engine, *graphs, sha256(cut.folder / "plan.json"), out, task.progress)


def engine_bytes(task: Task, simplified: Done) -> int:
    """What the engines take: each about as much as its graph in fp32."""
    section = task.config.engine
    if section.flavour == "none":
        return 0
    return bytes_in(simplified.folder) * len(section.targets) * len(section.precisions)


def dense_network(task: Task, trained: Done) -> nn.Module:
    """The network as it was trained, dense or with DemP and not cut yet, in eval mode on the CPU."""
    from pipeline.training.stage import Trained, trained_network

    return trained_network(task.config.model, task.data(), trained.result(Trained))


def compact_network(cut: Done) -> nn.Module:
    """The compact network, in eval mode on the CPU."""
    from pipeline.surgery import load_compact

    return load_compact(cut.folder).eval()


def check(
    task: Task,
    trained: Done,
    demp: Done,
    cut: Done,
    exported: Done,
    simplified: Done,
    casts: Done,
    engines: Done,
    out: Path,
) -> Checked:
    from pipeline import check as stage
    from pipeline.exporting import CastGraphs, Engines, Exported, Role, SimplifiedGraphs
    from pipeline.hops import Images
    from pipeline.surgery.stage import Cut
    from pipeline.training.stage import Trained

    first, second, lower = exported.result(Exported), simplified.result(SimplifiedGraphs), casts.result(CastGraphs)
    graphs: dict[str, dict[Role, Path]] = {
        "onnx": {"dense": first.dense.path, "compact": first.compact.path},
        "simplified": {"dense": second.dense.path, "compact": second.compact.path},
        **{name: {"dense": lower.dense[name].path, "compact": lower.compact[name].path} for name in lower.dense},
    }
    data, networks = task.data(), (dense_network(task, trained), compact_network(cut))
    return stage.check(
        task.config.check,
        dense=networks[0],
        masked=dense_network(task, demp),
        images=Images(data.names, data.mean, data.std),
        compact=networks[1],
        graphs=graphs,
        engines=engines.result(Engines).engines,
        test=data.test,
        max_abs_diff=cut.result(Cut).max_abs_diff,
        target=landing(task, demp.result(Trained), cut.result(Cut), networks),
        device=task.device,
        out=out,
        progress=task.progress,
    )


def landing(task: Task, trained: Trained, cut: Cut, networks: tuple[nn.Module, nn.Module]) -> Gate | None:
    """Whether a steered training landed where it was told to, by the network that surgery left; None without a
    target."""
    from pipeline.training.latency import Stopwatch
    from runtime.conditions import complaints
    from runtime.gate import disturbance, target_gate
    from runtime.macs import macs

    target = task.config.demp.target
    if target is None:
        return None
    if target.macs is not None:
        dense, compact = (macs(network, task.data().input_shape) for network in networks)
        return target_gate("share of MACs", target.macs, compact / dense)
    if target.channels is not None:
        return target_gate("share of channels", target.channels, cut.channels_after / cut.channels_before)
    assert target.latency_ms is not None and trained.reached is not None
    stopwatch = Stopwatch(task.data().input_shape, target.batch, target.backend, task.config.threads)
    told = stopwatch.compared(*networks)
    faster, doubt = told.speedups[0], disturbance(complaints(told.conditions, settings=False))
    dense_ms = trained.reached["dense_latency_ms"]  # the machine may be faster today than when the training began
    low, high = (dense_ms / ratio for ratio in reversed(faster.ci95))
    what = f"batch {target.batch} on {target.backend}"
    return target_gate(what, target.latency_ms, dense_ms / faster.ratio, " ms", (low, high), doubt)
