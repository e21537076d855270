"""A run's graphs and engines as a Triton model repository; `80-publish` in the run folder records what went where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.triton import Model, PublishedModel, publish, safe_name
from pipeline import data
from pipeline.config import Config
from pipeline.exporting import CastGraphs, Engines, SimplifiedGraphs, samples_of
from pipeline.workspace import Done

DENSE, COMPACT = 1, 2


@dataclass(frozen=True)
class Published:
    """Stage 80: where the repository stands, and its models with the hashes of their files."""

    directory: str
    models: tuple[PublishedModel, ...]

    def document(self) -> dict[str, Any]:
        models = [
            {"name": model.name, "platform": model.platform, "versions": sorted(model.sha256)} for model in self.models
        ]
        return {"status": "done", "directory": self.directory, "models": models}


@dataclass(frozen=True)
class Target:
    """Where to publish, and how far to go: see `export.triton.publish`."""

    directory: Path
    replace: bool = False
    allow_rtx: bool = False


def publish_run(config: Config, root: Path, target: Target, simplified: Done, casts: Done, engines: Done) -> Published:
    """Write the repository: version 1 of each model is dense, version 2 compact. Raises UserError.

    One model per precision as ONNX, and one per engine precision and target. Engines of tensorrt_rtx are left out
    unless `target.allow_rtx`: Triton's TensorRT backend does not load them.
    """
    images = data.load(config.data)
    graphs, lower = simplified.result(SimplifiedGraphs), casts.result(CastGraphs)
    name = safe_name(config.name)
    models = [
        Model(name, {DENSE: graphs.dense.path, COMPACT: graphs.compact.path}),
        *(
            Model(f"{name}_{precision}", {DENSE: lower.dense[precision].path, COMPACT: lower.compact[precision].path})
            for precision in sorted(lower.dense)
        ),
        *_engine_models(name, engines.result(Engines), graphs.compact.path, target.allow_rtx),
    ]
    repository = publish(
        models,
        target.directory,
        root=root,
        labels=images.names,
        samples=samples_of(images.test).numpy(),
        max_batch=config.engine.profile.max,
        allow_rtx=target.allow_rtx,
        replace=target.replace,
    )
    return Published(str(repository.path), repository.models)


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
