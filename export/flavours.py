"""Which TensorRT builds the engines here: `tensorrt` with a GPU, or `tensorrt_rtx` ahead of time without one.

Their builders have the same names, so everything after `load` is written once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from export.gpu import first_gpu
from runtime.errors import UserError

Flavour = Literal["tensorrt", "tensorrt_rtx"]


class EngineUnavailable(Exception):  # noqa: N818 - a fact about the machine, not a mistake
    """No engine can be built on this machine; the text says why."""


@dataclass(frozen=True)
class Choice:
    """The flavour that builds, and what each of its engines is for, e.g. ("SM86", "SM89"), or ("SM86+SM89",) for one
    engine that serves both."""

    flavour: Flavour
    targets: tuple[str, ...]


def load(flavour: Flavour) -> Any:
    """The flavour's Python module; `EngineUnavailable` if it is not installed or its library does not load."""
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: the wheel's stub where the library is absent
        raise EngineUnavailable(f"{flavour} cannot be imported: {' '.join(str(error).split())}") from error


def choose(flavour: str, targets: Sequence[str]) -> Choice:
    """Settles `auto` and `CURRENT`.

    `auto` is `tensorrt` where that and a GPU are present, else `tensorrt_rtx`. `tensorrt` builds for the GPU at hand
    and ignores `targets`. `CURRENT` becomes the GPU's own name, so that file names say what is in the file.
    Raises `EngineUnavailable` where the flavour or the GPU it needs is absent, `UserError` for an unknown target.
    """
    if flavour == "none":
        raise EngineUnavailable("engines are switched off (flavour none)")
    if flavour not in ("auto", "tensorrt", "tensorrt_rtx"):
        raise UserError(
            f"flavour {flavour!r}", "auto, tensorrt, tensorrt_rtx or none", "set engine.flavour to one of them"
        )
    gpu = first_gpu()
    reasons: list[str] = []
    if flavour in ("auto", "tensorrt"):
        try:
            load("tensorrt")
            if gpu is not None:
                return Choice("tensorrt", (gpu.target,))
            reasons.append("tensorrt needs a GPU to build and none was found")
        except EngineUnavailable as error:
            reasons.append(str(error))
    if flavour in ("auto", "tensorrt_rtx"):
        try:
            return Choice("tensorrt_rtx", _rtx_targets(load("tensorrt_rtx"), targets, gpu.target if gpu else None))
        except EngineUnavailable as error:
            reasons.append(str(error))
    raise EngineUnavailable("; ".join(reasons))


def _rtx_targets(trt: Any, targets: Sequence[str], current: str | None) -> tuple[str, ...]:
    known = [name for name in trt.ComputeCapability.__members__ if name not in ("NONE", "CURRENT")]
    named: list[str] = []
    for target in targets:
        parts = list(dict.fromkeys(_rtx_target(part, target, known, current) for part in target.split("+")))
        if len(parts) > 1 and current in parts and current not in known:
            raise UserError(
                f"engine target {target!r}: {current} is known to TensorRT-RTX only as CURRENT",
                "CURRENT alone, or named compute capabilities",
                "list CURRENT as a target of its own",
            )
        name = "+".join(parts)
        if name not in named:
            named.append(name)
    return tuple(named)


def _rtx_target(part: str, target: str, known: Sequence[str], current: str | None) -> str:
    if part == "CURRENT" and current is None:
        raise EngineUnavailable("target CURRENT needs a GPU and none was found")
    name = current if part == "CURRENT" and current is not None else part
    if name not in known and name != current:
        raise UserError(
            f"engine target {target!r}", f"one of {', '.join(known)}, CURRENT", "set engine.targets to such names"
        )
    return name


def engine_name(stem: str, precision: str, target: str) -> str:
    """File name of an engine: dense.fp16.SM86.engine."""
    return f"{stem}.{precision}.{target}.engine"


def cuda_of(flavour: Flavour) -> str | None:
    """The major version of CUDA that the installed flavour is for: its package tells, as in tensorrt-rtx-cu13, or the
    CUDA_VERSION of NVIDIA's container images. None where neither does."""
    for package in importlib.metadata.packages_distributions().get(flavour, ()):
        if told := re.search(r"cu(\d+)", package):
            return told[1]
    version = os.environ.get("CUDA_VERSION", "").split(".")[0]
    return version if version.isdigit() else None
