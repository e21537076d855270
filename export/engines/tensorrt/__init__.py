"""TensorRT engines from ONNX graphs: TensorRT 10, TensorRT 11 and TensorRT-RTX.

The precision is the graph's own: every network is strongly typed. The builder runs in a child process with a time
limit, so that its crash or hang becomes an error like any other.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engines import Engine, Order, manifest
from export.engines.machine import Image, Preflight
from export.engines.tensorrt import preflight as comparison
from export.engines.tensorrt.child import run_builder
from export.engines.tensorrt.config import Request, check_options
from export.engines.tensorrt.features import features
from export.engines.tensorrt.targets import cuda_of, load, tensorrt_rtx_targets, tensorrt_targets
from export.engines.tensorrt.timing_cache import cache_path
from runtime.files import replacing, sha256
from runtime.gpu import Gpu, first_gpu


@dataclass(frozen=True)
class TensorRt:
    """One of the two flavours, which differ in what they build for."""

    flavour: str
    settle: Callable[[Sequence[str]], tuple[str, ...]]
    suffix: str = ".engine"

    def version(self) -> str:
        """See Builder."""
        return str(load(self.flavour).__version__)

    def targets(self, requested: Sequence[str]) -> tuple[str, ...]:
        """See Builder."""
        return self.settle(requested)

    def build(self, order: Order) -> Engine:
        """See Builder. Also writes `<path>.layers.json`, what the engine inspector says, where this machine's GPU can
        load the engine."""
        path, options = order.path, order.options
        source = manifest.Source(file=os.path.relpath(order.onnx, path.parent), sha256=order.onnx_sha256)
        can = features(load(self.flavour))
        check_options(options, can, self.flavour)
        gpu = first_gpu()
        cache = self._cache_file(order, can.version, gpu) if can.timing_cache else None
        log, started = path.with_name(path.name + ".log"), time.perf_counter()
        with replacing(path) as temporary, tempfile.TemporaryDirectory() as scratch:
            layers = Path(scratch) / "layers.json"
            request = Request(
                onnx=str(order.onnx),
                engine=str(temporary),
                log=str(log),
                layers=str(layers),
                flavour=self.flavour,
                precision=order.precision,
                targets=_builder_targets(order.target, can.targets),
                options=options,
                timing_cache=str(cache) if cache else None,
            )
            answer = run_builder(request, Path(scratch) / "output", order.report)
            seconds = round(time.perf_counter() - started, 3)
            if options.timing_cache is not None and cache is None:
                answer["notes"].append(
                    f"{self.flavour} times no kernels ahead of time: nothing for engine.timing_cache"
                )
            content = _manifest(order, self.flavour, temporary, source, cache, answer, gpu)
            _put_layers(path, layers)
        return Engine(
            path, manifest.write(path, content), log, self.flavour, content.version, order.precision, content.target,
            content.sha256, content.bytes, seconds, content.layers, content.proof.model_dump(), tuple(content.notes),
        )  # fmt: skip

    def preflight(self, engine: Path, content: manifest.Manifest, image: Image | None, target: str | None) -> Preflight:
        """See Builder."""
        return comparison.preflight(engine, content, image, target)

    def _cache_file(self, order: Order, version: str, gpu: Gpu | None) -> Path | None:
        if order.options.timing_cache is None:
            return None
        device = f"{gpu.name}-{gpu.target}" if gpu else order.target
        return cache_path(Path(order.options.timing_cache), self.flavour, version, device)


TENSORRT = TensorRt("tensorrt", tensorrt_targets)
TENSORRT_RTX = TensorRt("tensorrt_rtx", tensorrt_rtx_targets)


def layers_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".layers.json")


def _put_layers(path: Path, layers: Path) -> None:
    """What the inspector says, in place of what lay beside an earlier engine."""
    _clear(path)
    if layers.exists():
        with replacing(layers_path(path)) as beside:
            beside.write_bytes(layers.read_bytes())


def _clear(path: Path) -> None:
    """Removes what describes the engine that is about to be replaced."""
    for beside in (manifest.manifest_path(path), layers_path(path)):
        with suppress(FileNotFoundError):
            beside.unlink()


def _builder_targets(target: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """() stands for the GPU at hand: `tensorrt` always, RTX where it has no name for that GPU."""
    return tuple(target.split("+")) if set(target.split("+")) <= set(names) else ()


def _manifest(
    order: Order,
    flavour: str,
    built: Path,
    source: manifest.Source,
    cache: Path | None,
    answer: Mapping[str, Any],
    gpu: Gpu | None,
) -> manifest.Manifest:
    document = {
        "schema": manifest.SCHEMA,
        "file": order.path.name,
        "sha256": sha256(built),
        "bytes": built.stat().st_size,
        "flavour": flavour,
        "cuda": {"library": cuda_of(flavour), "driver": gpu.driver_cuda if gpu else None},
        "targets": order.target.split("+"),
        "precision": order.precision,
        "options": order.options,
        "settings": {},
        "onnx": source,
        "weights": None,
        "timing_cache": {"file": cache.name, "sha256": sha256(cache)} if cache else None,
        "plan_sha256": order.plan_sha256,
        "gpu": gpu.name if gpu else None,
        "measured": None,
        **answer,
    }
    return manifest.Manifest.model_validate(document)
