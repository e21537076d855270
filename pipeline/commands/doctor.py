"""What is installed on this machine, which devices it has, and what demport can do with them."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.engines import BUILDERS, EngineUnavailable, builder, choose
from runtime import device
from runtime.errors import UserError
from runtime.gpu import first_gpu


def diagnose() -> str:
    """Lines for people; whatever is missing is told with its reason. Imports torch and TensorRT."""
    return "\n".join([*_machine(), "", *_libraries(), "", *_abilities()])


def _machine() -> list[str]:
    here = device.environment()
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        f"machine    {here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB; {here['os']}",
        f"python     {here['python']}",
        f"GPU        {', '.join(here['gpus']) or 'none found'}",
        f"disk       {free_gib:.1f} GiB free here",
        f"identity   {here['fingerprint']} (absolute latencies compare only where this is equal)",
    ]


def _libraries() -> list[str]:
    installed = device.versions()
    return [f"{name:18} {installed.get(name, 'not installed')}" for name in device.LIBRARIES]


def _abilities() -> list[str]:
    lines = [
        ("train", _training()),
        ("run ONNX", "on the CPU" if "onnxruntime" in device.versions() else "no, onnxruntime is not installed"),
        *((f"build with {flavour}", _builds(flavour)) for flavour in BUILDERS),
        ("TensorRT-RTX in ORT", _rtx_provider()),
        ("build engines", _building()),
        ("run engines", _running()),
    ]
    return [f"{what:20} {answer}" for what, answer in lines]


def _training() -> str:
    import torch

    if torch.cuda.is_available():
        return f"on {torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda}) and on the CPU"
    return "on the CPU; torch finds no GPU"


def _builds(flavour: str) -> str:
    try:
        return f"{', '.join(builder(flavour).targets(('SM86',)))}, by {builder(flavour).version()}"
    except EngineUnavailable as error:
        return f"no: {' '.join(str(error).split())}"


def _rtx_provider() -> str:
    from runtime.backends.rtx_provider import provider_devices

    try:
        return f"as a provider of ONNX Runtime, on {len(provider_devices())} devices"
    except UserError as error:
        return f"no: {error.found}"


def _building() -> str:
    try:
        choice = choose("auto", ("SM86",))
    except EngineUnavailable as error:
        return f"no: {' '.join(str(error).split())}"
    if choice.flavour == "tensorrt":
        return f"with tensorrt, for the GPU here ({choice.targets[0]})"
    return "with tensorrt_rtx, ahead of time, for the compute capabilities in engine.targets"


def _running() -> str:
    gpu = first_gpu()
    if gpu is None:
        return "no: there is no NVIDIA GPU or driver"
    if "pycuda" not in device.versions():
        return f"no: pycuda is not installed (GPU {gpu.name}, {gpu.target})"
    return f"on {gpu.name}, {gpu.target}, CUDA {gpu.driver_cuda}"
