"""Stages 40 to 60: what `export` does to a network, done to the dense and the compact one as the config says."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.best import Best
from export.build_flags import BuildFlags
from export.engine_from_onnx import Engine, engine_from_onnx
from export.flavours import EngineUnavailable, choose, engine_name
from export.onnx_from_torch import OnnxGraph, onnx_from_torch
from export.precision import CastGraph
from export.preprocessing import ServedGraph
from export.proof import Precision
from export.simplify import Simplified, simplify
from pipeline import config
from pipeline.data import Split
from pipeline.progress import Progress

Role = Literal["dense", "compact"]
ROLES: tuple[Role, Role] = ("dense", "compact")
SAMPLES = 8


@dataclass(frozen=True)
class Exported:
    """Stage 40: `dense.onnx` and `compact.onnx`."""

    dense: OnnxGraph
    compact: OnnxGraph


@dataclass(frozen=True)
class SimplifiedGraphs:
    """Stage 50: the fp32 graphs to go on with, under the same names."""

    dense: Simplified
    compact: Simplified


@dataclass(frozen=True)
class CastGraphs:
    """Stage 55: graphs by precision, e.g. `{"fp16": ...}`; empty where the config asks for none.

    `best` is the compact network's, None where it was not asked for. `served`: graphs that take pixels, by network and
    precision, e.g. `compact.fp32`.
    """

    dense: dict[str, CastGraph]
    compact: dict[str, CastGraph]
    best: Best | None = None
    served: dict[str, ServedGraph] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineResult:
    """One engine that the config asks for: built, or the reason why it is not."""

    model: Role
    precision: Precision
    target: str
    engine: Engine | None
    reason: str | None


@dataclass(frozen=True)
class Engines:
    """Stage 60."""

    engines: tuple[EngineResult, ...]


def samples_of(split: Split, count: int = SAMPLES) -> Tensor:
    """The first `count` images, normalised: float32 (N, C, H, W) on the CPU."""
    images, _ = next(iter(split.batches(count)))
    return images.cpu()


def export_graphs(
    section: config.Onnx,
    dense: nn.Module,
    compact: nn.Module,
    samples: Tensor,
    metadata: dict[str, str],
    plan_sha256: str,
    out: Path,
) -> Exported:
    """Write both networks as ONNX; `metadata` goes into both files, with the role of each and the size of its input,
    and compact's with the hash of its plan. Raises UserError.
    """
    common = {**metadata, "demport.input_size": json.dumps(list(samples.shape[1:]))}
    own = {"dense": {}, "compact": {"demport.plan_sha256": plan_sha256}}

    def graph(role: Role, network: nn.Module) -> OnnxGraph:
        return onnx_from_torch(
            network,
            samples,
            out / f"{role}.onnx",
            opset=section.opset,
            max_abs_diff=section.max_abs_diff,
            metadata={**common, **own[role], "demport.role": role},
        )

    return Exported(graph("dense", dense), graph("compact", compact))


def simplify_graphs(section: config.Simplify, exported: Exported, samples: Tensor, out: Path) -> SimplifiedGraphs:
    """Simplify both graphs, or copy them where the section says so. Raises UserError."""

    def graph(source: Path) -> Simplified:
        path = out / source.name
        if section.enabled:
            return simplify(source, path, max_abs_diff=section.max_abs_diff, samples=_array(samples))
        shutil.copyfile(source, path)
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
        return Simplified(path, "original", nodes, nodes, 0.0, {"every simplifier": "simplify.enabled is false"})

    return SimplifiedGraphs(graph(exported.dense.path), graph(exported.compact.path))


def build_engines(
    section: config.Engine,
    graphs: SimplifiedGraphs,
    casts: CastGraphs,
    plan_sha256: str,
    out: Path,
    progress: Progress,
) -> Engines:
    """Build every engine the section asks for, none with the flavour "none"; where no TensorRT can build one here, its
    entry says why. Raises UserError where TensorRT is there and refuses.
    """
    if section.flavour == "none":
        return Engines(())
    sources: dict[tuple[Role, str], Path] = {
        ("dense", "fp32"): graphs.dense.path,
        ("compact", "fp32"): graphs.compact.path,
    }
    sources |= {("dense", precision): graph.path for precision, graph in casts.dense.items()}
    sources |= {("compact", precision): graph.path for precision, graph in casts.compact.items()}
    targets, unavailable = _targets(section)
    wanted = [(role, p, target) for target in targets for p in section.precisions for role in ROLES]
    results = [
        EngineResult(role, precision, target, None, reason)
        for target, reason in unavailable.items()
        for precision in section.precisions
        for role in ROLES
    ]
    if wanted:
        progress.start("engines", len(wanted))
    try:
        for number, (role, precision, target) in enumerate(wanted):
            name = engine_name(role, precision, target)
            progress.update(number, name)
            try:
                engine = engine_from_onnx(
                    sources[role, precision],
                    out / name,
                    flavour=section.flavour,
                    precision=precision,
                    target=target,
                    profile=(section.profile.min, section.profile.opt, section.profile.max),
                    workspace_mib=section.workspace_mib,
                    tf32=section.tf32,
                    time_limit_s=section.time_limit_s,
                    plan_sha256=plan_sha256 if role == "compact" else None,
                    optimization_level=section.optimization_level,
                    flags=_flags(section),
                    report=partial(_report, progress, number, name),
                )
            except EngineUnavailable as error:
                results.append(EngineResult(role, precision, target, None, str(error)))
            else:
                results.append(EngineResult(role, precision, target, engine, None))
                for note in engine.notes:
                    progress.note(f"{name}: {note}")
            progress.update(number + 1, name)
    finally:
        progress.stop()
    return Engines(tuple(results))


def _flags(section: config.Engine) -> BuildFlags:
    return BuildFlags(
        more_profiles=tuple((profile.min, profile.opt, profile.max) for profile in section.more_profiles),
        version_compatible=section.version_compatible,
        hardware_compatibility=section.hardware_compatibility,
        refit=section.refit,
        sparse=section.sparse,
        timing_cache=None if section.timing_cache is None else Path(section.timing_cache),
        pin_tactics=section.pin_tactics,
    )


def _report(progress: Progress, number: int, name: str, fraction: float, phase: str) -> None:
    """Engine `number` of the stage is `fraction` done."""
    progress.update(number + min(fraction, 0.99), f"{name}: {phase}")


def _targets(section: config.Engine) -> tuple[list[str], dict[str, str]]:
    """The compute capabilities to build for, each once; and the reasons of those no TensorRT can build for here."""
    targets: list[str] = []
    unavailable: dict[str, str] = {}
    for asked in section.targets:
        try:
            settled = choose(section.flavour, (asked,)).targets
        except EngineUnavailable as error:
            unavailable[asked] = str(error)
        else:
            targets += [target for target in settled if target not in targets]
    return targets, unavailable


def _array(samples: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = samples.to(torch.float32).numpy()
    return array
