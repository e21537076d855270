"""Stage 55: both graphs in each lower precision asked for, judged on real images; and graphs that take pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.best import Best, fastest
from export.graph import Array
from export.precision import CastGraph, Images, Lowering, Rules
from export.preprocessing import Normalisation, pixels_of, serve_pixels
from export.quantise import Calibration
from pipeline import config
from pipeline.data import Dataset, Split
from pipeline.exporting import CastGraphs, SimplifiedGraphs, samples_of
from pipeline.progress import Progress
from runtime.backend import DeviceName

BATCH = 64


@dataclass(frozen=True)
class _Taken:
    """The first `count` images of a split, or as many in an order of its own where it has more; the same every time."""

    split: Split
    count: int

    def __call__(self) -> Iterator[tuple[Array, Array]]:
        left = self.count
        seed = 0 if len(self.split) > self.count else None  # folders come sorted by class
        for images, labels in self.split.batches(min(BATCH, self.count), seed=seed):
            yield np.asarray(images.cpu())[:left], np.asarray(labels.cpu())[:left]
            left -= len(images)
            if left <= 0:
                return


def images_of(section: config.PrecisionSection, data: Dataset) -> Images:
    """Calibration on training images, judgement on test images."""
    training, test = _Taken(data.train, section.calibration.images), _Taken(data.test, section.evaluation_images)
    samples = np.asarray(samples_of(data.test), np.float32)
    return Images(samples, lambda: (images for images, _ in training()), test)


def lower_graphs(
    section: config.PrecisionSection,
    graphs: SimplifiedGraphs,
    data: Dataset,
    device: DeviceName,
    out: Path,
    progress: Progress,
) -> CastGraphs:
    """Write both graphs in each lower precision: `dense.fp16.onnx`, ... Raises UserError."""
    calibration = Calibration(section.calibration.method, section.calibration.percentile, section.int8_for)
    rules = Rules(section.max_accuracy_drop, section.kept, calibration)
    images = images_of(section, data)
    made: dict[str, dict[str, CastGraph]] = {"dense": {}, "compact": {}}
    sources = {"dense": graphs.dense.path, "compact": graphs.compact.path}
    progress.start("precision", len(sources) * len(section.written))
    try:
        for number, (role, source) in enumerate(sources.items()):
            lowering = Lowering(source, images)
            for offset, precision in enumerate(section.written):
                progress.update(number * len(section.written) + offset, f"{role} in {precision}")
                graph = lowering.write(out / f"{role}.{precision}.onnx", precision, rules)
                made[role][precision] = graph
                if note := _note(graph, section.max_accuracy_drop):
                    progress.note(f"{role}.{precision}: {note}")
        progress.update(len(sources) * len(section.written))
    finally:
        progress.stop()
    best = _best(section, graphs.compact.path, made["compact"], data.test, device, progress)
    return CastGraphs(made["dense"], made["compact"], best)


def serve_graphs(
    section: config.Serving, graphs: SimplifiedGraphs, lower: CastGraphs, data: Dataset, out: Path
) -> CastGraphs:
    """Write each graph once more so that it takes pixels: `dense.fp32.pixels.onnx`, ... Raises UserError where the
    data are not whole levels from 0 to 255, or answers differ.
    """
    if not section.enabled:
        return lower
    normalisation = Normalisation(data.mean, data.std, data.scale)
    pixels = pixels_of(np.asarray(samples_of(data.test)), normalisation)
    size = None if section.height is None or section.width is None else (section.height, section.width)
    sources = {"dense.fp32": graphs.dense.path, "compact.fp32": graphs.compact.path}
    for role, made in (("dense", lower.dense), ("compact", lower.compact)):
        sources |= {f"{role}.{name}": graph.path for name, graph in made.items()}
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
        )
        for name, source in sources.items()
    }
    return replace(lower, served=served)


def _best(
    section: config.PrecisionSection,
    source: Path,
    lower: dict[str, CastGraph],
    test: Split,
    device: DeviceName,
    progress: Progress,
) -> Best | None:
    """The precision of the compact network, which is deployed."""
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
    chosen = fastest(files, refused, images, device="cpu" if device == "cpu" else "auto", threads=section.best_threads)
    progress.note(f"best: {chosen.precision}, timed with ONNX Runtime on {chosen.device} at batch {chosen.batch}")
    return chosen


def _note(graph: CastGraph, allowed: float) -> str:
    """What is worth a line while the stage runs; "" where all is as asked."""
    if not graph.holds:
        return f"loses {graph.drop_pp:.2f} points, {allowed:g} allowed"
    if graph.kept:
        return f"{len(graph.kept)} of {graph.layers + len(graph.kept)} layers stay in fp32"
    return ""
