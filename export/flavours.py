"""Which TensorRT builds the engines here: `tensorrt` with a GPU, or `tensorrt_rtx` ahead of time without one.

Their builders have the same names, so everything after `load` is written once.
"""

from __future__ import annotations

import importlib
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
    """The flavour that builds, and the compute capabilities it builds for, e.g. ("SM86", "SM89")."""

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
        if target == "CURRENT" and current is None:
            raise EngineUnavailable("target CURRENT needs a GPU and none was found")
        name = current if target == "CURRENT" and current is not None else target
        if name not in known and name != current:
            raise UserError(
                f"engine target {target!r}", f"one of {', '.join(known)}, CURRENT", "set engine.targets to such names"
            )
        if name not in named:
            named.append(name)
    return tuple(named)


def engine_name(stem: str, precision: str, target: str) -> str:
    """File name of an engine: dense.fp16.SM86.engine."""
    return f"{stem}.{precision}.{target}.engine"
