"""`demport preflight`: whether a machine can load an engine, said before anything is deserialised.

General TensorRT cannot say it in advance, so the manifest is compared with the machine: this one, or a Triton image
with a GPU named beside it. TensorRT-RTX answers for itself where it and a GPU are present.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.features import features
from export.flavours import EngineUnavailable, load
from export.gpu import first_gpu
from export.manifest import Manifest, manifest_path, verify
from export.triton_images import TritonImage, triton_image
from runtime.backend import ENGINE_SUFFIXES
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, UserError

Status = Literal["ok", "wrong machine", "unknown"]


@dataclass(frozen=True)
class Preflight:
    """Whether the machine can load an engine, why not or why that is not known, and what to build instead.

    `rebuild` is a command, None where nothing needs to be rebuilt or nobody knows how.
    """

    engine: Path
    machine: str
    status: Status
    reasons: tuple[str, ...]
    rebuild: str | None

    @property
    def exit_code(self) -> int:
        return {"ok": EXIT_PASS, "wrong machine": EXIT_GATE_FAILED, "unknown": EXIT_INCONCLUSIVE}[self.status]

    def document(self) -> dict[str, Any]:
        return {**vars(self), "engine": str(self.engine), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Machine:
    """What would load the engine. `version` is that of the engine's flavour there, None where it is not known, with
    `missing` where it is known not to be there; `target` the GPU's compute capability; `cuda` the CUDA version that the
    GPU's driver serves, or that comes with the image."""

    name: str
    version: str | None
    missing: str | None
    gpu: str | None
    target: str | None
    cuda: str | None
    image: TritonImage | None = None


def preflight(engine: Path, *, image: TritonImage | None = None, target: str | None = None) -> Preflight:
    """Says without deserialising whether this machine, or Triton's `image` on a GPU of compute capability `target`
    (default: this machine's), can load `engine`.

    `wrong machine`: the flavour is not there, there is no GPU, or version, CUDA or compute capability do not fit.
    `unknown`: no manifest, a tag that is not in the table, no GPU named for it, or an RTX engine about which the
    runtime gives no answer. `UserError`: the engine is missing, no engine by its name, truncated or altered, or its
    manifest is not in order.
    """
    if not engine.is_file():
        found = "is no file" if engine.exists() else "is missing"
        raise UserError(f"{engine} {found}", "an engine file", "check the path")
    name = image.reference if image else "this machine"
    if not manifest_path(engine).exists():
        _demand_engine_name(engine)
        reason = f"{manifest_path(engine).name} is missing: nothing tells what it was built for"
        return Preflight(engine, name, "unknown", (reason,), None)
    manifest = verify(engine)
    machine = _image_machine(manifest, image, target) if image else _this_machine(manifest, target)
    wrong, unknown, remarks = _compare(manifest, machine)
    if not (wrong or unknown or image) and manifest.flavour == "tensorrt_rtx" and target is None:
        return _asked_rtx(load("tensorrt_rtx"), engine, manifest, machine)
    status: Status = "wrong machine" if wrong else "unknown" if unknown else "ok"
    rebuild = None if status == "ok" else _rebuild(manifest, machine)
    return Preflight(engine, name, status, (*wrong, *unknown, *remarks), rebuild)


def _demand_engine_name(engine: Path) -> None:
    """`UserError` for a file that neither its name nor a manifest calls an engine."""
    if engine.suffix not in ENGINE_SUFFIXES:
        remedy = "build one from it: python -m export" if engine.suffix == ".onnx" else "give an engine of a run"
        raise UserError(
            f"{engine} is no engine by its name, and no manifest {manifest_path(engine).name} is beside it",
            f"a file that ends in {' or '.join(ENGINE_SUFFIXES)}, or one with its manifest",
            remedy,
        )


def examine(engine: Path, image: str | None, target: str | None) -> Preflight:
    """`preflight` for a tag of Triton's image and a compute capability as a user writes them."""
    if target is not None and not re.fullmatch(r"SM\d{2,3}", target):
        raise UserError(f"--gpu {target!r}", "a compute capability such as SM86", "write it so")
    return preflight(engine, image=None if image is None else triton_image(image), target=target)


def _this_machine(manifest: Manifest, target: str | None) -> Machine:
    gpu = first_gpu()
    version, missing = None, None
    try:
        version = str(load(manifest.flavour).__version__)
    except EngineUnavailable as error:
        missing = str(error)
    if target is not None:
        return Machine("this machine", version, missing, None, target, gpu.driver_cuda if gpu else None)
    if gpu is None:
        return Machine("this machine", version, missing, None, None, None)
    return Machine("this machine", version, missing, gpu.name, gpu.target, gpu.driver_cuda)


def _image_machine(manifest: Manifest, image: TritonImage, target: str | None) -> Machine:
    gpu = first_gpu() if target is None else None
    missing = None
    if manifest.flavour == "tensorrt_rtx":
        missing = f"{image.reference} has no TensorRT-RTX: its TensorRT backend loads engines of tensorrt only"
    name, target = (gpu.name, gpu.target) if gpu else (None, target)
    return Machine(image.reference, image.tensorrt, missing, name, target, image.cuda, image)


def _compare(manifest: Manifest, machine: Machine) -> tuple[list[str], list[str], list[str]]:
    """What forbids loading, what leaves it open, and what to know besides."""
    wrong: list[str] = []
    unknown: list[str] = []
    remarks: list[str] = []
    if machine.missing:
        wrong.append(machine.missing)
    elif machine.version is None:
        assert machine.image is not None
        unknown.append(
            f"the table has no row for {machine.image.tag}; ask the image: docker run --rm {machine.image.reference} "
            "sh -c 'dpkg-query -W libnvinfer10 libnvinfer11'"
        )
    else:
        _compare_versions(manifest, machine.name, machine.version, wrong, remarks)
    if machine.target is None:
        if machine.image is None:
            wrong.append("no NVIDIA GPU or driver was found")
        else:
            unknown.append("no GPU is here and none is named: give --gpu, e.g. --gpu SM86")
    else:
        _compare_gpus(manifest, machine, wrong, remarks)
    needed, served = manifest.cuda.library, machine.cuda
    if needed and served and machine.image is None and int(served.split(".")[0]) < int(needed.split(".")[0]):
        wrong.append(f"the driver serves CUDA {served}, the engine's library needs {needed}")
    return wrong, unknown, remarks


def _compare_versions(manifest: Manifest, name: str, there: str, wrong: list[str], remarks: list[str]) -> None:
    here, built = _release(there), _release(manifest.version)
    if here == built[: len(here)]:
        return
    told = f"{manifest.flavour} is {there} on {name}, the engine was built by {manifest.version}"
    if not manifest.options.version_compatible:
        wrong.append(told)
    elif here[0] != built[0] or here < built:
        wrong.append(f"{told}: a version-compatible engine loads in later versions of {built[0]} only")
    else:
        remarks.append(f"{told}: it is version-compatible, and its own code must be allowed to run")


def _compare_gpus(manifest: Manifest, machine: Machine, wrong: list[str], remarks: list[str]) -> None:
    assert machine.target is not None
    level = manifest.options.hardware_compatibility
    if level == "ampere_plus":
        if _capability(machine.target) < 80:
            wrong.append(f"the GPU is {machine.target}, the engine runs on SM80 and later")
        return
    if manifest.flavour == "tensorrt_rtx" and machine.image is None and machine.gpu is not None:
        return  # TensorRT-RTX is asked itself
    if machine.target not in manifest.targets:
        wrong.append(f"the GPU is {machine.target}, the engine is for {' and '.join(manifest.targets)}")
    elif level == "none" and manifest.gpu and machine.gpu and machine.gpu != manifest.gpu:
        remarks.append(f"the engine was tuned on {manifest.gpu}: on {machine.gpu} it may run slower or be refused")


def _capability(target: str) -> int:
    return int(target.removeprefix("SM"))


def _release(version: str) -> list[int]:
    """Major, minor and patch: within them engines load, across them they do not."""
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _rebuild(manifest: Manifest, machine: Machine) -> str | None:
    """The command that builds an engine for that machine, run in the engine's folder; None where no engine would help
    because there is no GPU."""
    words = shlex.split(manifest.command)
    if machine.image is not None:
        words[words.index("--flavour") + 1] = "tensorrt"
        words[words.index("--target") + 1] = "CURRENT"
        return f"{shlex.join(words)}  (in a container with the TensorRT of {machine.image.tag}, on the serving GPU)"
    if machine.target is None:
        return None
    named = manifest.flavour == "tensorrt_rtx" and machine.target in _rtx_targets()
    words[words.index("--target") + 1] = machine.target if named else "CURRENT"
    return shlex.join(words) + ("" if named else "  (on that GPU)")


def _rtx_targets() -> tuple[str, ...]:
    """The compute capabilities that the TensorRT-RTX here can build for without such a GPU; () without it."""
    try:
        return features(load("tensorrt_rtx")).targets
    except EngineUnavailable:
        return ()


def _asked_rtx(trt: Any, engine: Path, manifest: Manifest, machine: Machine) -> Preflight:
    """TensorRT-RTX answers for itself, from the engine's bytes."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    validity, diagnostics = trt.Runtime(logger).get_engine_validity(engine.read_bytes())
    names = [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(diagnostics) & int(bit)]
    rebuild = _rebuild(manifest, machine)
    if validity == trt.EngineValidity.VALID:
        return Preflight(engine, machine.name, "ok", (), None)
    if validity == trt.EngineValidity.SUBOPTIMAL:
        slower = "TensorRT-RTX would run it slower than one built for this GPU"
        return Preflight(engine, machine.name, "ok", (slower, *names), rebuild)
    if "CUDA_ERROR" in names or not names:
        reason = f"TensorRT-RTX gives no reason; the GPU is {machine.target}, the engine is for {manifest.target}"
        return Preflight(engine, machine.name, "unknown", (reason, *names), rebuild)
    reason = f"TensorRT-RTX refuses it: {', '.join(names)}"
    return Preflight(engine, machine.name, "wrong machine", (reason,), rebuild)
