"""A run's graphs and engines for a server; `80-publish` in the run folder records what went where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from export.engines import manifest
from export.serving.bundle import bundle
from export.serving.files import Model, Sources, safe_name
from export.serving.pbtxt import Serving
from export.serving.release_index import PublishedModel
from export.serving.releases import rollback
from export.serving.triton import Content, publish
from export.serving.triton_ensemble import Images
from pipeline import data
from pipeline.check.measured_engines import measured_manifests
from pipeline.config import Config
from pipeline.config.publish import Publish
from pipeline.data import Dataset
from pipeline.results import ROLES, CastGraphs, Engines, Format, Published, Served, SimplifiedGraphs
from pipeline.stages.omissions import by_reason, omissions, without_answers
from pipeline.stages.onnx import samples_of
from pipeline.workspace import record as stage_record
from pipeline.workspace.folder import Done
from runtime.backends.openvino import server_properties
from runtime.device import usable_cores

DENSE, COMPACT = 1, 2
SAMPLES = 4
WHOLE = 1e-3  # how near a pixel that was normalised and back lies to a whole number


@dataclass(frozen=True)
class Target:
    """Where to publish, and how far to go: see `export.serving.triton.publish` and `export.serving.bundle.bundle`."""

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
    absent = list(omissions(target.format, target.allow_rtx, engines.result(Engines), lower, models))
    precisions = {name: "fp32", **{f"{name}_{precision}": precision for precision in lower.dense}}
    if section.layout == "names":
        precisions = {f"{model}_{role}": one for model, one in precisions.items() for role in ROLES}
        models = [apart for model in models for apart in _apart(model, graphs)]
    hashes = {**_hashes(simplified), **_hashes(casts)}
    measured = measured_manifests(root / "70-check", engines.result(Engines).engines)
    sources = Sources(root, hashes, section.max_batch or settings.engine.profile.max, target.allow_rtx, measured)
    samples = samples_of(images.test).numpy()
    if target.format == "bundle":
        published = bundle(
            models,
            target.directory,
            sources,
            labels=images.names,
            samples=samples,
            storage_uri=section.storage_uri,
            plugin_config=_plugin_config(settings, precisions, engines.result(Engines)),
            measured=_measured_openvino(settings, measured.values()),
            replace=target.replace,
        )
        done = _published(target, published.serial, published.swap, published.models, verdict)
        return replace(done, left_out=by_reason([*absent, *without_answers(target.directory, done.models, False)]))
    content = Content(images.names, samples, images_of(images) if section.classify else None, name)
    repository = publish(
        models, target.directory, sources, content=content, serving=_serving(section), replace=target.replace
    )
    done = _published(target, repository.serial, repository.swap, repository.models, verdict)
    silent = without_answers(target.directory, done.models, section.classify)
    return replace(done, left_out=by_reason([*absent, *silent]))


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
    return Images(array, dataset.mean, dataset.std, dataset.scale, high if high > 0 else 1.0, dataset.fit)


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
        if entry.engine is not None and entry.engine.flavour in ("tensorrt", *["tensorrt_rtx"] * allow_rtx):
            version = DENSE if entry.model == "dense" else COMPACT
            built.setdefault((entry.precision, entry.target), {})[version] = entry.engine.path
    for (precision, target), versions in sorted(built.items()):
        if len(versions) == 2:
            yield Model(f"{name}_trt_{precision}_{target}", versions, reference)


def _plugin_config(settings: Config, precisions: Mapping[str, str], engines: Engines) -> dict[str, dict[str, str]]:
    """Model -> what OpenVINO Model Server compiles it with: what the check measured engines of its precision with, in
    float32 where the run has none."""
    here = {one.precision for one in engines.engines if one.engine is not None and one.engine.flavour == "openvino"}
    threads = settings.check.threads or usable_cores()
    return {
        model: server_properties(threads, precision) if precision in here else server_properties(None)
        for model, precision in precisions.items()
    }


def _measured_openvino(settings: Config, copies: Iterable[Path]) -> list[manifest.Manifest]:
    """Manifests of the OpenVINO engines that the check ran, with the threads that it ran them with."""
    threads = settings.check.threads or usable_cores()
    every = [one for one in map(manifest.read, copies) if one.flavour == "openvino"]
    return [one.model_copy(update={"settings": {**one.settings, "threads": threads}}) for one in every]


def _apart(model: Model, graphs: SimplifiedGraphs) -> Iterator[Model]:
    """Dense and compact as models of their own."""
    for role, version, graph in (("dense", DENSE, graphs.dense), ("compact", COMPACT, graphs.compact)):
        reference = None if model.reference is None else graph.path
        yield Model(f"{model.name}_{role}", {1: model.versions[version]}, reference)


def _hashes(done: Done) -> dict[Path, str]:
    """What a stage's record says of its files."""
    record = stage_record.read_unverified(done.folder)
    assert record is not None
    return {done.folder / name: str(entry["sha256"]) for name, entry in record["files"].items()}


def _published(
    target: Target, serial: int, swap: str, models: tuple[PublishedModel, ...], verdict: str | None = None
) -> Published:
    served = tuple(Served(model.name, model.platform, model.max_batch_size, model.sha256) for model in models)
    return Published(str(target.directory), target.format, serial, swap, served, verdict)
