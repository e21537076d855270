"""A TensorRT engine from an ONNX graph, for TensorRT 10, 11 and TensorRT-RTX alike.

The precision is the graph's own: every network is strongly typed. The builder runs in a child process with a time
limit, so that its crash or hang becomes an error like any other.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export import manifest
from export.build_engine import Request
from export.files import replacing, sha256
from export.flavours import Choice, EngineUnavailable, Flavour, choose, load
from export.gpu import first_gpu
from runtime.errors import UserError

HOUSE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Engine:
    """A built engine; `layers` counts its layers by kind and type, as proof of the precision."""

    path: Path
    manifest: Path
    log: Path
    flavour: Flavour
    version: str
    precision: Literal["fp32", "fp16"]
    target: str
    sha256: str
    bytes: int
    seconds: float
    layers: dict[str, dict[str, int]]


def engine_from_onnx(
    onnx: Path,
    path: Path,
    *,
    flavour: str,
    precision: Literal["fp32", "fp16"],
    target: str,
    profile: tuple[int, int, int],
    workspace_mib: int,
    tf32: bool,
    time_limit_s: float,
    plan_sha256: str | None,
    optimization_level: int = 3,
) -> Engine:
    """Builds `path` from `onnx`; writes `<path>.json` (manifest) and `<path>.log` (the builder's messages) beside it.

    `flavour` is auto, tensorrt or tensorrt_rtx, `target` a compute capability (SM86) or CURRENT, as for
    `flavours.choose`; `profile` the batch sizes (min, opt, max); `workspace_mib` in MiB; `tf32` lets fp32 layers use
    TF32; `plan_sha256` identifies the compact network's plan and goes into the manifest. All or nothing is written, but
    for the log, which stays after a failure too. `EngineUnavailable`: no flavour can build here. `UserError`: the graph
    is unreadable, its convolutions and matrix products are not in `precision`, its batch does not fit the profile, the
    builder refuses it (with its first error), crashes, or takes longer than `time_limit_s` seconds.
    """
    if not 1 <= profile[0] <= profile[1] <= profile[2]:
        raise UserError(f"the profile {list(profile)}", "1 <= min <= opt <= max", "set engine.profile so")
    choice = choose(flavour, (target,))
    source = manifest.Source(file=os.path.relpath(onnx, path.parent), sha256=sha256(onnx))
    log = path.with_name(path.name + ".log")
    started = time.perf_counter()
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as scratch:
        request = Request(
            onnx=str(onnx),
            engine=str(temporary),
            answer=str(Path(scratch) / "answer.json"),
            log=str(log),
            flavour=choice.flavour,
            precision=precision,
            target=_builder_target(choice),
            profile=profile,
            workspace_mib=workspace_mib,
            tf32=tf32,
            optimization_level=optimization_level,
        )
        answer = _child(request, Path(scratch) / "request.json", time_limit_s)
        seconds = round(time.perf_counter() - started, 3)
        told = _manifest(path, temporary, request, choice, source, plan_sha256, answer)
        with suppress(FileNotFoundError):
            manifest.manifest_path(path).unlink()  # it describes the engine that is about to be replaced
    sidecar = manifest.write(path, told)
    what = choice.flavour, told.version, precision, told.target
    return Engine(path, sidecar, log, *what, told.sha256, told.bytes, seconds, told.layers)


def _builder_target(choice: Choice) -> str | None:
    """None stands for the GPU at hand: `tensorrt` always, RTX where it has no name for that GPU."""
    if choice.flavour == "tensorrt":
        return None
    (target,) = choice.targets
    return target if target in load("tensorrt_rtx").ComputeCapability.__members__ else None


def _manifest(
    path: Path,
    built: Path,
    request: Request,
    choice: Choice,
    source: manifest.Source,
    plan_sha256: str | None,
    answer: Mapping[str, Any],
) -> manifest.Manifest:
    gpu = first_gpu()
    fields = {key: answer[key] for key in ("version", "inputs", "outputs", "profiles", "layers", "versions", "seconds")}
    document = {
        "schema": manifest.SCHEMA,
        "file": path.name,
        "sha256": sha256(built),
        "bytes": built.stat().st_size,
        "flavour": choice.flavour,
        "target": choice.targets[0],
        "precision": request.precision,
        "tf32": request.tf32,
        "workspace_mib": request.workspace_mib,
        "optimization_level": request.optimization_level,
        "onnx": source,
        "plan_sha256": plan_sha256,
        "gpu": None if gpu is None else f"{gpu.name}, CUDA {gpu.driver_cuda}",
        "command": _command(path, request, choice, source),
        **fields,
    }
    return manifest.Manifest.model_validate(document)


def _command(path: Path, request: Request, choice: Choice, source: manifest.Source) -> str:
    """Rebuilds the engine when run in its folder."""
    words = ["python", "-m", "export", source.file, path.name, "--flavour", choice.flavour]
    words += ["--precision", request.precision, "--target", choice.targets[0]]
    words += ["--profile", ",".join(map(str, request.profile)), "--workspace-mib", str(request.workspace_mib)]
    words += ["--optimization-level", str(request.optimization_level)] + ["--tf32"] * request.tf32
    return shlex.join(words)


def _child(request: Request, file: Path, time_limit_s: float) -> dict[str, Any]:
    """The builder process's answer. Its errors, its crash and its running out of time are raised here."""
    file.write_text(json.dumps(dataclasses.asdict(request)), encoding="utf-8")
    log = Path(request.log)
    output = file.with_name("output")
    # -P and the path: the child finds this package and nothing of the current folder's, whatever that is
    command = [sys.executable, "-P", "-m", "export.build_engine", str(file)]
    paths = os.pathsep.join(filter(None, (str(HOUSE), os.environ.get("PYTHONPATH"))))
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        try:
            code = process.wait(time_limit_s)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"the {request.flavour} builder was still at {request.onnx} after {time_limit_s:g} s",
                "an engine within engine.time_limit_s",
                "raise engine.time_limit_s",
            ) from error
        finally:
            _end(process)
    answer = Path(request.answer)
    if code != 0 or not answer.exists():
        raise _crash(request, code, output.read_text(encoding="utf-8", errors="replace"), log)
    result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "unavailable" in result:
        raise EngineUnavailable(result["unavailable"])
    if not result["ok"]:
        raise UserError(result["found"], result["expected"], result["remedy"])
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child's whole session if it still runs, and waits for it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _crash(request: Request, code: int, output: str, log: Path) -> UserError:
    """What a child that gave no answer says last, on one line; all of it goes to the end of the log."""
    with log.open("a", encoding="utf-8") as file:
        file.write(output)
    lines = [line.strip() for line in output.splitlines() if line.strip()] or log.read_text().splitlines()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    said = f", its last words: {lines[-1][:300]}" if lines else ""
    return UserError(
        f"the {request.flavour} builder {how} on {request.onnx}{said}",
        "an engine",
        f"see {log.name}; free memory, or try another target or precision",
    )
