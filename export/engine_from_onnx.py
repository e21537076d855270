"""A TensorRT engine from an ONNX graph, for TensorRT 10, 11 and TensorRT-RTX alike.

The precision is the graph's own: every network is strongly typed. The builder runs in a child process with a time
limit, so that its crash or hang becomes an error like any other.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import manifest
from export.build_config import Request
from export.build_flags import BuildFlags, Profile, check_flags, check_limits, check_profiles
from export.build_progress import Report
from export.builder_process import run_builder
from export.features import features
from export.files import replacing, sha256
from export.flavours import Choice, choose, cuda_of, load
from export.gpu import Gpu, first_gpu
from export.proof import Precision
from export.timing_cache import cache_path

_PASSED_ON = ("version_compatible", "hardware_compatibility", "refit", "sparse", "pin_tactics")


@dataclass(frozen=True)
class Engine:
    """A built engine; `layers` counts its layers by kind and type, `proof` is the manifest's proof of the precision."""

    path: Path
    manifest: Path
    log: Path
    flavour: str
    version: str
    precision: Precision
    target: str
    sha256: str
    bytes: int
    seconds: float
    layers: dict[str, dict[str, int]]
    proof: dict[str, Any]
    notes: tuple[str, ...]


def engine_from_onnx(
    onnx: Path,
    path: Path,
    *,
    flavour: str,
    precision: Precision,
    target: str,
    profile: Profile,
    workspace_mib: int,
    tf32: bool,
    time_limit_s: float,
    plan_sha256: str | None,
    optimization_level: int = 3,
    flags: BuildFlags | None = None,
    report: Report | None = None,
) -> Engine:
    """Builds `path` from `onnx`; writes `<path>.json` (manifest) and `<path>.log` (the builder's messages) beside it,
    and `<path>.layers.json` (what the engine inspector tells) where this machine's GPU can load the engine.

    `flavour` is auto, tensorrt or tensorrt_rtx, `target` a compute capability (SM86), several for one engine
    (SM86+SM89) or CURRENT, as for `flavours.choose`; `profile` the batch sizes (min, opt, max) of the first
    optimisation profile; `workspace_mib` in MiB; `tf32` lets fp32 layers use TF32; `plan_sha256` identifies the compact
    network's plan and goes into the manifest; `report` hears of progress. All or nothing is written, but for the log,
    which stays after a failure too. `EngineUnavailable`: no flavour can build here. `UserError`: the graph is
    unreadable, its products are not in `precision`, its batch does not fit the profiles, an option is not for this
    TensorRT, the builder refuses it (with its first error), crashes, or takes longer than `time_limit_s` seconds.
    """
    source = manifest.Source(file=os.path.relpath(onnx, path.parent), sha256=sha256(onnx))
    flags = flags or BuildFlags()
    profiles = (profile, *flags.more_profiles)
    check_profiles(profiles)
    check_limits(workspace_mib, optimization_level, time_limit_s)
    choice = choose(flavour, (target,))
    can = features(load(choice.flavour))
    check_flags(flags, can, choice.flavour)
    gpu = first_gpu()
    cache = _cache_file(flags, choice, can.version, gpu) if can.timing_cache else None
    log, started = path.with_name(path.name + ".log"), time.perf_counter()
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as scratch:
        paths: dict[str, Any] = {"onnx": str(onnx), "engine": str(temporary), "log": str(log)}
        paths |= {name: str(Path(scratch) / f"{name}.json") for name in ("answer", "layers")}
        request = Request(
            **paths,
            flavour=choice.flavour,
            precision=precision,
            targets=_builder_targets(choice, can.targets),
            profiles=profiles,
            workspace_mib=workspace_mib,
            tf32=tf32,
            optimization_level=optimization_level,
            timing_cache=str(cache) if cache else None,
            **{name: getattr(flags, name) for name in _PASSED_ON},
        )
        answer = run_builder(request, Path(scratch) / "request.json", time_limit_s, report)
        seconds = round(time.perf_counter() - started, 3)
        answer["notes"] += _no_cache(flags, cache, choice)
        told = _manifest(path, temporary, request, choice, source, plan_sha256, answer, gpu)
        _put_layers(path, Path(request.layers))
    what = choice.flavour, told.version, precision, told.target, told.sha256, told.bytes, seconds, told.layers
    return Engine(path, manifest.write(path, told), log, *what, told.proof.model_dump(), tuple(told.notes))


def layers_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".layers.json")


def _put_layers(path: Path, layers: Path) -> None:
    """What the inspector told, in place of what lay beside an earlier engine."""
    _clear(path)
    if layers.exists():
        with replacing(layers_path(path)) as beside:
            beside.write_bytes(layers.read_bytes())


def _clear(path: Path) -> None:
    """Removes what describes the engine that is about to be replaced."""
    for beside in (manifest.manifest_path(path), layers_path(path)):
        with suppress(FileNotFoundError):
            beside.unlink()


def _builder_targets(choice: Choice, known: tuple[str, ...]) -> tuple[str, ...]:
    """() stands for the GPU at hand: `tensorrt` always, RTX where it has no name for that GPU."""
    (target,) = choice.targets
    return tuple(target.split("+")) if set(target.split("+")) <= set(known) else ()


def _cache_file(flags: BuildFlags, choice: Choice, version: str, gpu: Gpu | None) -> Path | None:
    if flags.timing_cache is None:
        return None
    device = f"{gpu.name}-{gpu.target}" if gpu else choice.targets[0]
    return cache_path(flags.timing_cache, choice.flavour, version, device)


def _no_cache(flags: BuildFlags, cache: Path | None, choice: Choice) -> list[str]:
    """A note where a timing cache was asked for and there is nothing to keep in it."""
    if flags.timing_cache is None or cache is not None:
        return []
    return [f"{choice.flavour} times no kernels ahead of time: nothing for engine.timing_cache"]


def _manifest(
    path: Path,
    built: Path,
    request: Request,
    choice: Choice,
    source: manifest.Source,
    plan_sha256: str | None,
    answer: Mapping[str, Any],
    gpu: Gpu | None,
) -> manifest.Manifest:
    kept = ("version", "inputs", "outputs", "profiles", "layers", "proof", "versions", "seconds", "notes")
    cache = Path(request.timing_cache) if request.timing_cache else None
    document = {
        "schema": manifest.SCHEMA,
        "file": path.name,
        "sha256": sha256(built),
        "bytes": built.stat().st_size,
        "flavour": choice.flavour,
        "cuda": {"library": cuda_of(choice.flavour), "driver": gpu.driver_cuda if gpu else None},
        "targets": choice.targets[0].split("+"),
        "precision": request.precision,
        "options": {key: getattr(request, key) for key in manifest.Options.model_fields},
        "onnx": source,
        "timing_cache": {"file": cache.name, "sha256": sha256(cache)} if cache else None,
        "plan_sha256": plan_sha256,
        "gpu": gpu.name if gpu else None,
        "measured": None,
        "command": _command(path, request, choice, source),
        **{key: answer[key] for key in kept},
    }
    return manifest.Manifest.model_validate(document)


def _command(path: Path, request: Request, choice: Choice, source: manifest.Source) -> str:
    """Rebuilds the engine when run in its folder."""
    words = ["python", "-m", "export", source.file, path.name, "--flavour", choice.flavour]
    words += ["--precision", request.precision, "--target", choice.targets[0]]
    for profile in request.profiles:
        words += ["--profile", ",".join(map(str, profile))]
    words += ["--workspace-mib", str(request.workspace_mib), "--optimization-level", str(request.optimization_level)]
    if request.hardware_compatibility != "none":
        words += ["--hardware-compatibility", request.hardware_compatibility]
    if request.timing_cache:
        words += ["--timing-cache", str(Path(request.timing_cache).parent)]
    switches = ("tf32", "version_compatible", "refit", "sparse", "pin_tactics")
    return shlex.join(words + [f"--{name.replace('_', '-')}" for name in switches if getattr(request, name)])
