"""TensorRT's module of either flavour, what its engines can be for, and whether the installed package is whole."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Sequence
from typing import Any

from export.engines import EngineUnavailable
from runtime.backends.trt_library import load_library
from runtime.errors import UserError
from runtime.gpu import first_gpu


def load(flavour: str) -> Any:
    """The flavour's Python module; `EngineUnavailable` if it is not installed, empty, or its library does not load."""
    try:
        return load_library(flavour)
    except ImportError as error:
        raise EngineUnavailable(f"{flavour} cannot be imported: {error}") from error


def tensorrt_targets(requested: Sequence[str]) -> tuple[str, ...]:
    """`tensorrt` tunes for the GPU at hand, whatever is requested."""
    load("tensorrt")
    gpu = first_gpu()
    if gpu is None:
        raise EngineUnavailable("tensorrt needs a GPU to build and none was found")
    return (gpu.target,)


def tensorrt_rtx_targets(requested: Sequence[str]) -> tuple[str, ...]:
    """`tensorrt_rtx` builds ahead of time for the names that it has; CURRENT becomes the GPU's own name, so that file
    names say what is in the file."""
    gpu = first_gpu()
    return rtx_targets(load("tensorrt_rtx"), requested, gpu.target if gpu else None)


def rtx_targets(trt: Any, targets: Sequence[str], current: str | None) -> tuple[str, ...]:
    names = [name for name in trt.ComputeCapability.__members__ if name not in ("NONE", "CURRENT")]
    named: list[str] = []
    for target in targets:
        parts = list(dict.fromkeys(_rtx_target(part, target, names, current) for part in target.split("+")))
        if len(parts) > 1 and current in parts and current not in names:
            raise UserError(
                f"engine target {target!r}: {current} is known to TensorRT-RTX only as CURRENT",
                "CURRENT alone, or named compute capabilities",
                "list CURRENT as a target of its own",
            )
        name = "+".join(parts)
        if name not in named:
            named.append(name)
    return tuple(named)


def _rtx_target(part: str, target: str, names: Sequence[str], current: str | None) -> str:
    if part == "CURRENT" and current is None:
        raise EngineUnavailable("target CURRENT needs a GPU and none was found")
    name = current if part == "CURRENT" and current is not None else part
    if name not in names and name != current:
        raise UserError(
            f"engine target {target!r}", f"one of {', '.join(names)}, CURRENT", "set engine.targets to such names"
        )
    return name


def cuda_of(flavour: str) -> str | None:
    """The major version of CUDA that the installed flavour is for: the package's name has it
    (tensorrt-rtx-cu13), or the CUDA_VERSION of NVIDIA's container images. None where neither does."""
    for package in importlib.metadata.packages_distributions().get(flavour, ()):
        if match := re.search(r"cu(\d+)", package):
            return match[1]
    version = os.environ.get("CUDA_VERSION", "").split(".")[0]
    return version if version.isdigit() else None
