"""Whether a machine can load a TensorRT engine.

General TensorRT cannot say it in advance, so the manifest is compared with the machine: this one, or a Triton image
with a GPU named beside it. TensorRT-RTX answers for itself where it and a GPU are present.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engines import EngineUnavailable
from export.engines.machine import Preflight, Status
from export.engines.manifest import Manifest
from export.engines.tensorrt.features import features
from export.engines.tensorrt.targets import load
from export.engines.triton_images import TritonImage
from runtime.gpu import first_gpu


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


def preflight(engine: Path, manifest: Manifest, image: TritonImage | None, target: str | None) -> Preflight:
    """`wrong machine`: the flavour is not there, there is no GPU, or version, CUDA or compute capability do not fit.
    `unknown`: a tag that is not in the table, no GPU named for it, or an RTX engine about which the runtime gives no
    answer."""
    name = image.reference if image else "this machine"
    machine = _image_machine(manifest, image, target) if image else _this_machine(manifest, target)
    wrong, unknown, remarks = _compare(manifest, machine)
    if not (wrong or unknown or image) and manifest.flavour == "tensorrt_rtx" and target is None:
        return _asked_rtx(load("tensorrt_rtx"), engine, manifest, machine)
    status: Status = "wrong machine" if wrong else "unknown" if unknown else "ok"
    rebuild = None if status == "ok" else _rebuild(manifest, machine)
    return Preflight(engine, name, status, (*wrong, *unknown, *remarks), rebuild)


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
    difference = f"{manifest.flavour} is {there} on {name}, the engine was built by {manifest.version}"
    if not manifest.options.version_compatible:
        wrong.append(difference)
    elif here[0] != built[0] or here < built:
        wrong.append(f"{difference}: a version-compatible engine loads in later versions of {built[0]} only")
    else:
        remarks.append(f"{difference}: it is version-compatible, and its own code must be allowed to run")


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
    if machine.image is not None:
        where = f"(in a container with the TensorRT of {machine.image.tag}, on the serving GPU)"
        return f"{manifest.command('tensorrt', 'CURRENT')}  {where}"
    if machine.target is None:
        return None
    named = manifest.flavour == "tensorrt_rtx" and machine.target in _rtx_targets()
    return manifest.command(target=machine.target if named else "CURRENT") + ("" if named else "  (on that GPU)")


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
