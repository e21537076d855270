"""What this machine is, so that figures are compared only where they can be."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.gpu import gpu_names

LIBRARIES = (
    "demport", "numpy", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxsim", "onnxslim", "openvino", "tensorrt", "tensorrt-rtx-cu13", "pycuda", "safetensors",
)  # fmt: skip


def usable_cores() -> int:
    """Cores this process may run on: its affinity where the system has one, else all of them."""
    return len(usable())


def usable() -> list[int]:
    """Numbers of those cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


@cache
def cpu_model() -> str:
    """The processor's name with family, model and stepping, as cloud machines often give no more than a brand."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.is_file():
        first = info.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields]
    return f"{name} ({', '.join(numbers)})" if numbers else name


@cache
def gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs, in the driver's order; () where there are none."""
    return gpu_names()


def identity() -> dict[str, Any]:
    """What the fingerprint is made of: the kind of machine. Neither its name, nor memory (it varies by some MiB between
    equal machines), nor versions, which change without the machine changing."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "gpus": list(gpus()),
    }


def fingerprint() -> str:
    """16 hexadecimal digits of the SHA-256 of `identity()`: equal on machines whose absolute figures may be
    compared."""
    return hashlib.sha256(json.dumps(identity(), sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the libraries that are installed, from their metadata: nothing is imported."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def environment() -> dict[str, Any]:
    """fingerprint, machine, system, cpu, cores, gpus, memory_gib, os, kernel, python, versions: what every figure is
    read with."""
    import psutil

    return {
        "fingerprint": fingerprint(),
        **identity(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.platform())
    except OSError:
        return platform.platform()
