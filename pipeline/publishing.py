"""A run's graphs and engines for a server; `80-publish` in the run folder records what went where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from export.bundle import bundle
from export.release_index import PublishedModel
from export.releases import rollback
from export.served import Model, Sources, safe_name
from export.triton import Content, publish
from export.triton_config import Serving
from export.triton_ensemble import Images
from pipeline import data, stage_record
from pipeline.config import Config
from pipeline.config_publish import Publish
from pipeline.data import Dataset
from pipeline.exporting import CastGraphs, Engines, SimplifiedGraphs, samples_of
from pipeline.measured_engines import measured_manifests
from pipeline.workspace import Done

DENSE, COMPACT = 1, 2
SAMPLES = 4
WHOLE = 1e-3  # how near a pixel that was normalised and back lies to a whole number
Format = Literal["triton", "bundle"]


@dataclass(frozen=True)
class Served:
    """One published model; `sha256` of each version's file."""

    name: str
    platform: str
    max_batch_size: int
    sha256: dict[str, str]


@dataclass(frozen=True)
class Published:
    """Stage 80: where the folder stands, the number of its release, and its models.

    `verdict` of the run's check: pass, fail, inconclusive; None where it was not done, or after a rollback.
    """

    directory: str
    format: Format
    serial: int
    swap: str
    models: tuple[Served, ...]
    verdict: str | None = None

    def document(self) -> dict[str, Any]:
        """The JSON document that ends the command's output."""
        models = [
            {"name": model.name, "platform": model.platform, "versions": sorted(map(int, model.sha256))}
            for model in self.models
        ]
        told = {"directory": self.directory, "format": self.format, "serial": self.serial, "swap": self.swap}
        return {"status": "done", **told, "verdict": self.verdict, "models": models}


@dataclass(frozen=True)
class Target:
    """Where to publish, and how far to go: see `export.triton.publish` and `export.bundle.bundle`."""

    directory: Path
    format: Format = "triton"
    replace: bool = False
    allow_rtx: bool = False


def publish_run(
    settings: Config, root: Path, target: Target, verdict: str | None, simplified: Done, casts: Done, engines: Done
) -> Published:
    """Write the folder. Raises UserError.

    One model per precision as ONNX, and in a Triton repository one per engine precision and target; version 1 dense,
    version 2 compact, or a model of its own for each. Engines of tensorrt_rtx are left out unless `target.allow_rtx`:
    Triton's TensorRT backend does not load them. An engine goes with its manifest, and with what the check measured.
    """
    section, images = settings.publish, data.load(settings.data)
    graphs, lower = simplified.result(SimplifiedGraphs), casts.result(CastGraphs)
    name = safe_name(settings.name)
    models = [
        Model(name, {DENSE: graphs.dense.path, COMPACT: graphs.compact.path}),
        *(
            Model(f"{name}_{precision}", {DENSE: lower.dense[precision].path, COMPACT: lower.compact[precision].path})
            for precision in sorted(lower.dense)
        ),
    ]
    if target.format == "triton":
        reference = graphs.dense.path if section.serve == "dense" else graphs.compact.path
        models += _engine_models(name, engines.result(Engines), reference, target.allow_rtx)
    if section.layout == "names":
        models = [apart for model in models for apart in _apart(model, graphs)]
    hashes = {**_hashes(simplified), **_hashes(casts)}
    measured = measured_manifests(root / "70-check", engines.result(Engines).engines)
    sources = Sources(root, hashes, section.max_batch or settings.engine.profile.max, target.allow_rtx, measured)
    samples = samples_of(images.test).numpy()
    if target.format == "bundle":
        told = bundle(
            models,
            target.directory,
            sources,
            labels=images.names,
            samples=samples,
            storage_uri=section.storage_uri,
            replace=target.replace,
        )
        return _published(target, told.serial, told.swap, told.models, verdict)
    content = Content(images.names, samples, images_of(images) if section.classify else None, name)
    made = publish(
        models, target.directory, sources, content=content, serving=_serving(section), replace=target.replace
    )
    return _published(target, made.serial, made.swap, made.models, verdict)


def roll_back(directory: Path) -> Published:
    """Put the release before back in place. Raises UserError."""
    index, swap = rollback(directory)
    return _published(Target(directory, index.kind), index.serial, swap, tuple(index.models))


def images_of(dataset: Dataset) -> Images:
    """The first test images as they were before normalisation.

    uint8 where all pixels of the test split are whole numbers from 0 to 255; float32 else.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))

    def pixels(x: torch.Tensor) -> torch.Tensor:
        return (x.cpu() * std + mean) * dataset.scale

    whole, high = dataset.scale == 255, 255.0
    if not whole:
        low, high, whole = 0.0, 0.0, True
        for x, _ in dataset.test.batches(512):
            values = pixels(x)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and bool((values - values.round()).abs().max() < WHOLE)
        whole = whole and low > -WHOLE and high < 255 + WHOLE
    first = pixels(samples_of(dataset.test, SAMPLES)).permute(0, 2, 3, 1).numpy()
    array = np.rint(first).clip(0, 255).astype(np.uint8) if whole else np.ascontiguousarray(first, np.float32)
    high = float(round(high)) if whole else high
    return Images(array, dataset.mean, dataset.std, dataset.scale, high if high > 0 else 1.0)


def _serving(section: Publish) -> Serving:
    versions = {"both": None, "dense": (DENSE,), "compact": (COMPACT,)}[section.serve]
    return Serving(
        instances=section.instances,
        queue_delay_us=section.queue_delay_us,
        preferred=section.preferred_batches,
        versions=None if section.layout == "names" else versions,
        warmup=section.warmup,
        cuda_graphs=section.cuda_graphs,
    )


def _engine_models(name: str, engines: Engines, reference: Path, allow_rtx: bool) -> Iterator[Model]:
    """One model for each precision and target of which both networks have an engine."""
    built: dict[tuple[str, str], dict[int, Path]] = {}
    for entry in engines.engines:
        if entry.engine is not None and (allow_rtx or entry.engine.flavour == "tensorrt"):
            version = DENSE if entry.model == "dense" else COMPACT
            built.setdefault((entry.precision, entry.target), {})[version] = entry.engine.path
    for (precision, target), versions in sorted(built.items()):
        if len(versions) == 2:
            yield Model(f"{name}_trt_{precision}_{target}", versions, reference)


def _apart(model: Model, graphs: SimplifiedGraphs) -> Iterator[Model]:
    """Dense and compact as models of their own."""
    for role, version, graph in (("dense", DENSE, graphs.dense), ("compact", COMPACT, graphs.compact)):
        reference = None if model.reference is None else graph.path
        yield Model(f"{model.name}_{role}", {1: model.versions[version]}, reference)


def _hashes(done: Done) -> dict[Path, str]:
    """What a stage's record says of its files."""
    record = stage_record.read_unverified(done.folder)
    assert record is not None
    return {done.folder / name: str(told["sha256"]) for name, told in record["files"].items()}


def _published(
    target: Target, serial: int, swap: str, models: tuple[PublishedModel, ...], verdict: str | None = None
) -> Published:
    served = tuple(Served(model.name, model.platform, model.max_batch_size, model.sha256) for model in models)
    return Published(str(target.directory), target.format, serial, swap, served, verdict)
