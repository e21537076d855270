"""Stage 55: both graphs in each lower precision asked for, judged on real images; and graphs that take pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.task import task_of
from pipeline.stages import Run, Stage, tree_of
from pipeline.stages.onnx import samples_of
from pipeline.stages.train import data_and_model
from runtime import device as machine

if TYPE_CHECKING:
    from torch import Tensor

    from export.onnx.graph import Array
    from export.precision.fastest import Best
    from export.precision.lower import CastGraph, Images
    from export.precision.pairs import Tune
    from pipeline import config
    from pipeline.data import Dataset, Split
    from pipeline.progress import Progress
    from pipeline.results import CastGraphs, SimplifiedGraphs
    from pipeline.tasks import Task
    from runtime.backends import DeviceName
    from runtime.measure.judged import Judge


def where_timed(run: Run) -> Mapping[str, Any]:
    """The sections `serving` and `task`, and what training and `best` depend on beside the graphs."""
    tree, section = tree_of(run.config), run.config.precision
    basis = {name: tree[name] for name in ("serving", "task")}
    if section.qat is not None:
        basis |= {**data_and_model(run), "torch": machine.versions().get("torch"), "device": run.device}
    if "best" not in section.graphs:
        return basis
    return {**basis, "machine": machine.fingerprint(), "device": run.device, "backend": timed_on(run)}


def timed_on(run: Run) -> str:
    """What `best` is timed on."""
    return "openvino" if run.config.engine.flavour == "openvino" else "onnxruntime"


BATCH = 64


def precision(run: Run, simplified: SimplifiedGraphs, out: Path, checkpoints: Path) -> CastGraphs:
    """Write the graphs. Raises UserError."""
    section, data, judge = run.config.precision, run.data(), task_of(run.config.task).judge()
    tune = _tune(run, simplified, out, checkpoints)
    lower = lower_graphs(section, simplified, data, run.device, out, run.progress, judge, timed_on(run), tune)
    lower = serve_graphs(run.config.serving, simplified, lower, data, out)
    return completed(task_of(run.config.task), simplified, lower, samples_of(data.test), out)


PRECISION = Stage(
    "55-precision",
    precision,
    "precision",
    libraries="onnx onnxruntime",
    version=2,
    also=where_timed,
    checkpoints=True,
)


def _tune(run: Run, simplified: SimplifiedGraphs, out: Path, checkpoints: Path) -> Tune | None:
    """The training of compact's int8 graph, where one is asked for."""
    section = run.config.precision.qat
    if section is None:
        return None
    from pipeline.training.quantisation.train import train_int8
    from pipeline.training.train import Setting

    config, task = run.config, task_of(run.config.task)
    basics = config.model, run.data(), config.seed, config.threads, run.device
    setting = Setting(*basics, out, run.progress, checkpoints, task)
    return partial(train_int8, section, source=simplified.compact.path, setting=setting)


@dataclass(frozen=True)
class _FirstImages:
    """The first `count` images of a split, or as many in an order of its own where it has more; the same every time."""

    split: Split
    count: int

    def __call__(self) -> Iterator[tuple[Array, Array]]:
        import numpy as np

        from pipeline.data.dataset import at_once

        remaining = self.count
        seed = 0 if len(self.split) > self.count else None  # folders come sorted by class
        for images, labels in self.split.batches(min(at_once(self.split, BATCH), self.count), seed=seed):
            yield np.asarray(images.cpu())[:remaining], np.asarray(labels.cpu())[:remaining]
            remaining -= len(images)
            if remaining <= 0:
                return


def images_of(section: config.PrecisionSection, data: Dataset, judge: Judge) -> Images:
    """Calibration on training images, judgement on those that choices are made on."""
    import numpy as np

    from export.precision.lower import Images

    training, choosing = (
        _FirstImages(data.train, section.calibration.images),
        _FirstImages(data.choosing, section.evaluation_images),
    )
    samples = np.asarray(samples_of(data.test), np.float32)
    return Images(samples, lambda: (images for images, _ in training()), choosing, judge)


def lower_graphs(
    section: config.PrecisionSection,
    graphs: SimplifiedGraphs,
    data: Dataset,
    device: DeviceName,
    out: Path,
    progress: Progress,
    judge: Judge,
    backend: str = "onnxruntime",
    tune: Tune | None = None,
) -> CastGraphs:
    """Write both graphs in each lower precision: `dense.fp16.onnx`, ...; `tune` trains compact's in int8. Raises
    UserError."""
    from export.precision.int8 import Calibration
    from export.precision.lower import Lowering, Rules
    from pipeline.results import CastGraphs

    calibration = Calibration(**section.calibration.ranges, runtime=section.int8_for)
    rules = Rules(section.max_accuracy_drop, section.fp32_layers, calibration)
    images = images_of(section, data, judge)
    cast: dict[str, dict[str, CastGraph]] = {"dense": {}, "compact": {}}
    sources = {"dense": graphs.dense.path, "compact": graphs.compact.path}
    if not section.written:
        return CastGraphs({}, {})
    total = len(sources) * len(section.written)
    progress.start("precision", total)
    try:
        for number, (role, source) in enumerate(sources.items()):
            lowering = Lowering(source, images)
            for offset, precision in enumerate(section.written):
                progress.update(number * len(section.written) + offset, f"{role} in {precision}")
                trains = tune is not None and (role, precision) == ("compact", "int8")
                own = replace(rules, tune=tune) if trains else rules
                graph = lowering.write(out / f"{role}.{precision}.onnx", precision, own)
                if trains:  # had a bar of its own
                    progress.start("precision", total)
                cast[role][precision] = graph
                if note := _note(graph, section.max_accuracy_drop):
                    progress.note(f"{role}.{precision}: {note}")
        progress.update(total)
    finally:
        progress.stop()
    best = _best(section, graphs.compact.path, cast["compact"], data.test, device, progress, backend)
    return CastGraphs(cast["dense"], cast["compact"], best)


def completed(task: Task, graphs: SimplifiedGraphs, lower: CastGraphs, samples: Tensor, out: Path) -> CastGraphs:
    """Write each graph once more with the last step of the task in it, where it has one. Raises UserError."""
    import numpy as np

    if task.completed is None:
        return lower
    images = np.asarray(samples, np.float32)
    files = {
        name: task.completed(source, out / f"{name}.{task.completion}.onnx", images)
        for name, source in _sources(graphs, lower).items()
    }
    return replace(lower, completed=files)


def _sources(graphs: SimplifiedGraphs, lower: CastGraphs) -> dict[str, Path]:
    """Every graph, by network and precision, e.g. `compact.fp32`."""
    sources = {"dense.fp32": graphs.dense.path, "compact.fp32": graphs.compact.path}
    for role, graphs_of_role in (("dense", lower.dense), ("compact", lower.compact)):
        sources |= {f"{role}.{name}": graph.path for name, graph in graphs_of_role.items()}
    return sources


def serve_graphs(
    section: config.Serving, graphs: SimplifiedGraphs, lower: CastGraphs, data: Dataset, out: Path
) -> CastGraphs:
    """Write each graph once more so that it takes pixels: `dense.fp32.pixels.onnx`, ... Raises UserError where the
    data are not whole levels from 0 to 255, or answers differ.
    """
    import numpy as np

    from export.onnx.pixels import Normalisation, pixels_of, serve_pixels

    if not section.enabled:
        return lower
    normalisation = Normalisation(data.mean, data.std, data.scale)
    pixels = pixels_of(np.asarray(samples_of(data.test)), normalisation)
    size = None if section.height is None or section.width is None else (section.height, section.width)
    served = {
        name: serve_pixels(
            source,
            out / f"{name}.pixels.onnx",
            normalisation=normalisation,
            size=size,
            output=section.output,
            k=section.k,
            pixels=pixels,
            max_abs_diff=section.max_abs_diff,
            fit=data.fit,
        )
        for name, source in _sources(graphs, lower).items()
    }
    return replace(lower, served=served)


def _best(
    section: config.PrecisionSection,
    source: Path,
    lower: dict[str, CastGraph],
    test: Split,
    device: DeviceName,
    progress: Progress,
    backend: str,
) -> Best | None:
    """The precision of the compact network, which is deployed."""
    import numpy as np

    from export.precision.fastest import fastest

    if "best" not in section.graphs:
        return None
    refused = {
        name: f"loses {graph.drop_pp:.2f} points, {section.max_accuracy_drop:g} allowed"
        for name, graph in lower.items()
        if not graph.holds
    }
    files = {"fp32": source, **{name: graph.path for name, graph in lower.items()}}
    images = np.asarray(samples_of(test, section.best_batch), np.float32)
    images = np.resize(images, (section.best_batch, *images.shape[1:]))
    where: DeviceName = "cpu" if device == "cpu" else "auto"
    chosen = fastest(files, refused, images, device=where, threads=section.best_threads, backend=backend)
    progress.note(f"best: {chosen.precision}, timed with {chosen.backend} on {chosen.device} at batch {chosen.batch}")
    return chosen


def _note(graph: CastGraph, allowed: float) -> str:
    """What is worth a line while the stage runs; "" where all is as asked."""
    if (tuning := graph.tuning) is not None and graph.accuracy < tuning.accuracy_before:
        worse = 100 * (tuning.accuracy_before - graph.accuracy)
        return f"{worse:.2f} points below the same graph without training: see precision.qat"
    if not graph.holds:
        return f"loses {graph.drop_pp:.2f} points, {allowed:g} allowed"
    if graph.kept:
        return f"{len(graph.kept)} of {graph.layers + len(graph.kept)} layers stay in fp32"
    return ""
