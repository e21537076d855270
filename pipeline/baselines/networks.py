"""The networks that stand beside compact, each an ONNX file in a folder of its own, which appears when it is whole."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from export.onnx.from_torch import onnx_from_torch
from pipeline import config
from pipeline.baselines import narrow
from pipeline.baselines.smaller import resized, sides_of
from pipeline.config import Config
from pipeline.config.sparse import sparse_of
from pipeline.config.task import task_of
from pipeline.data import Dataset
from pipeline.models import build_for
from pipeline.progress import Progress
from pipeline.results import SimplifiedGraphs
from pipeline.stages.onnx import samples_of
from pipeline.stages.precision import lower_graphs
from pipeline.training.steering.stopwatch import Stopwatch
from pipeline.training.train import Setting, train_dense, train_sparse, trained_network
from runtime import files
from runtime.errors import UserError
from runtime.files import read_json, write_json
from runtime.macs import params

if TYPE_CHECKING:
    from runtime.backends import DeviceName

FITS = 1.02
"""Times compact's p50 that a network may take and still count as as fast, in the search for its size."""
ROW, GRAPH, CHECKPOINTS = "row.json", "network.onnx", "checkpoints"


@dataclass(frozen=True)
class Beside:
    """What every baseline needs: the run, its data and graphs, and the budget."""

    config: Config
    data: Dataset
    device: DeviceName
    progress: Progress
    epochs: int
    compact: nn.Module
    compact_share: float
    """Of dense's MACs."""
    dense_weights: Path
    graphs: SimplifiedGraphs
    basis: str
    """Changes when a baseline has to be made again."""


@dataclass(frozen=True)
class Candidate:
    """`graphs`: name -> an ONNX file; `data`: the images it takes, at a lower resolution only."""

    graphs: dict[str, Path]
    what: str
    epochs: int
    side: int | None = None


Make = Callable[[Beside, Path, Path], Candidate]


def candidate(name: str, make: Make, beside: Beside, folder: Path) -> Candidate | str:
    """The network `name` as it lies in `folder`, made where it is not there on this basis; or why there is none."""
    final, part = folder / name, folder / f".{name}.tmp"
    there = _read(final, beside.basis)
    if there is not None:
        beside.progress.note(f"{name}: up to date")
        return there
    beside.progress.note(f"{name}: runs")
    files.remove(part)
    part.mkdir(parents=True)
    checkpoints = folder / CHECKPOINTS / f"{name}-{beside.basis[:16]}"
    try:
        answer: Candidate | str = make(beside, part, checkpoints)
    except UserError as error:
        answer = error.found
    row: dict[str, Any] = {"basis": beside.basis, "reason": answer if isinstance(answer, str) else None}
    if isinstance(answer, Candidate):
        graphs = {key: path.name for key, path in answer.graphs.items()}
        row |= {"graphs": graphs, "what": answer.what, "epochs": answer.epochs, "side": answer.side}
    write_json(part / ROW, row)
    files.remove(final)
    part.rename(final)
    shutil.rmtree(checkpoints, ignore_errors=True)
    fresh = _read(final, beside.basis)
    assert fresh is not None
    return fresh


def _read(folder: Path, basis: str) -> Candidate | str | None:
    try:
        row = read_json(folder / ROW)
        if row["basis"] != basis:
            return None
        if row["reason"] is not None:
            return str(row["reason"])
        graphs = {str(key): folder / str(name) for key, name in row["graphs"].items()}
        return Candidate(graphs, str(row["what"]), int(row["epochs"]), row["side"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def narrow_network(beside: Beside, out: Path, checkpoints: Path) -> Candidate:
    """Narrow by the same share in every layer, down to compact's latency; trained from fresh weights."""
    settings, data = beside.config, beside.data
    align = 1 if settings.surgery.align == "auto" else settings.surgery.align
    watch, whole = _stopwatch(beside, data.input_shape), build_for(_bare(settings.model), data)

    timed: dict[int, bool] = {}

    def fits(share: float) -> bool:
        network = narrow.narrowed(whole, data.input_shape, share, align)
        size = params(network)  # aligned widths are few, so that several shares give one network
        if size not in timed:
            first, other = watch.ms(beside.compact, network)
            timed[size] = other <= FITS * first
        return timed[size]

    share = narrow.largest(fits)
    if share is None:
        raise UserError("no narrow network is as fast as compact", "one that is", "leave it out")
    args = {"of": settings.model.name, "args": dict(settings.model.args), "share": share, "align": align}
    model = config.Model(name=narrow.SPEC, args=args)
    trained = train_dense(_recipe(beside), _setting(beside, model, data, out, checkpoints))
    path = _exported(beside, trained_network(model, data, trained), data, out)
    return Candidate({"narrow": path}, f"{share:.0%} of every layer's channels, from scratch", beside.epochs)


def lower_resolution(beside: Beside, out: Path, checkpoints: Path) -> Candidate:
    """The dense network on smaller images, down to compact's latency; trained from fresh weights."""
    settings, data = beside.config, beside.data
    (limit_ms,) = _stopwatch(beside, data.input_shape).ms(beside.compact)
    for side in sides_of(data.input_shape[1]):
        width = max(1, round(data.input_shape[2] * side / data.input_shape[1]))
        shape = (data.input_shape[0], side, width)
        small = dataclasses.replace(data, input_shape=shape)
        (ms,) = _stopwatch(beside, shape).ms(build_for(_bare(settings.model), small))
        if ms <= FITS * limit_ms:
            break
    else:
        raise UserError("at no side down to a quarter is dense as fast as compact", "one that is", "leave it out")
    images = resized(settings, data, side)
    model = _bare(settings.model)
    trained = train_dense(_recipe(beside), _setting(beside, model, images, out, checkpoints))
    path = _exported(beside, trained_network(model, images, trained), images, out)
    what = f"dense on images of {side} x {images.input_shape[2]}, from scratch"
    return Candidate({"lower resolution": path}, what, beside.epochs, side)


def random_cut(beside: Beside, out: Path, checkpoints: Path) -> Candidate:
    """Channels at random, down to compact's MACs, in the training that compact had."""
    settings, data = beside.config, beside.data
    if not beside.compact_share < 1:
        raise UserError("compact has as many MACs as dense, so nothing is to be cut", "a compact network", "prune more")
    shared = {key: getattr(settings.sparse, key) for key in config.Sparse.model_fields if key != "method"}
    section = sparse_of(**shared | {"method": "random", "epochs": beside.epochs},
                        target={"macs": beside.compact_share, "reached_at": 0.25})  # fmt: skip
    setting = _setting(beside, settings.model, data, out, checkpoints)
    align = settings.surgery.align
    trained = train_sparse(section, setting.after(beside.dense_weights, settings) if uses(settings) else setting,
                           align=1 if align == "auto" else align)  # fmt: skip
    path = _exported(beside, trained_network(settings.model, data, trained), data, out)
    return Candidate({"random channels": path}, f"cut to {beside.compact_share:.0%} of the MACs", beside.epochs)


def int8_alone(beside: Beside, out: Path, checkpoints: Path) -> Candidate:
    """Dense as it is, in the int8 that ONNX Runtime computes on a CPU; and compact so, for it may have both."""
    settings = beside.config
    section = settings.precision.model_copy(update={"graphs": ("int8",), "int8_for": "onnxruntime"})
    judge, graphs = task_of(settings.task).judge(), beside.graphs
    lower = lower_graphs(section, graphs, beside.data, beside.device, out, beside.progress, judge)
    paths = {"int8": lower.dense["int8"].path, "compact, int8": lower.compact["int8"].path}
    return Candidate(paths, "its weights and activations in 8 bits, calibrated, not trained", 0)


CANDIDATES: dict[str, Make] = {
    "narrow": narrow_network, "lower-resolution": lower_resolution, "random-channels": random_cut, "int8": int8_alone,
}  # fmt: skip
"""Folder -> what makes it."""


def uses(settings: Config) -> bool:
    """Whether the run's sparse training used the dense one."""
    return settings.starts_dense or settings.distill is not None


def _recipe(beside: Beside) -> config.Dense:
    """The dense training's, where there was one, else the sparse one's at the usual learning rate."""
    settings = beside.config
    if settings.dense.epochs > 0:
        return settings.dense.model_copy(update={"epochs": beside.epochs, "log": ()})
    keys = {key: getattr(settings.sparse, key) for key in config.Training.model_fields if key not in ("lr", "log")}
    return config.Dense(**keys | {"epochs": beside.epochs})


def _setting(beside: Beside, model: config.Model, data: Dataset, out: Path, checkpoints: Path) -> Setting:
    settings = beside.config
    places = out, beside.progress, checkpoints, task_of(settings.task)
    return Setting(model, data, settings.seed, settings.threads, beside.device, *places)


def _stopwatch(beside: Beside, shape: tuple[int, int, int]) -> Stopwatch:
    return Stopwatch(shape, beside.config.check.gate_batch, "onnxruntime", beside.config.check.threads)


def _bare(model: config.Model) -> config.Model:
    return model.model_copy(update={"weights": None, "new_head": False})


def _exported(beside: Beside, network: nn.Module, data: Dataset, out: Path) -> Path:
    named = task_of(beside.config.task).network(network)
    with torch.no_grad():
        graph = onnx_from_torch(named, samples_of(data.test), out / GRAPH, opset=beside.config.onnx.opset,
                                max_abs_diff=math.inf, metadata={})  # fmt: skip
    return graph.path
