"""Engines: options, manifests, preflight and the builders.

A backend is one folder here, which builds, and one file in `runtime/backends`, which runs; each is one row of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from export.engines.options import EngineOptions
from export.engines.proof import Precision
from runtime.errors import UserError
from runtime.files import sha256

if TYPE_CHECKING:
    from export.engines.machine import Image, Preflight
    from export.engines.manifest import Manifest

BUILDERS = {
    "tensorrt": "export.engines.tensorrt:TENSORRT",
    "tensorrt_rtx": "export.engines.tensorrt:TENSORRT_RTX",
    "openvino": "export.engines.openvino:OPENVINO",
}
AUTO = ("tensorrt", "tensorrt_rtx")
"""The flavours that `auto` tries, in this order."""

Report = Callable[[float, str], None]
"""Called with the fraction done (0 to 1, never falling) and the name of the phase under way."""


class EngineUnavailable(Exception):  # noqa: N818 - a fact about the machine, not a mistake
    """No engine can be built on this machine; the text says why."""


@dataclass(frozen=True)
class Choice:
    """The flavour that builds, and what each of its engines is for, e.g. ("SM86", "SM89"), ("SM86+SM89",) for one
    engine that serves both, or ("CPU",)."""

    flavour: str
    targets: tuple[str, ...]


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


@dataclass(frozen=True)
class Order:
    """An engine to build: `path` from the graph `onnx` in its own precision, for one target of `Choice`. `plan_sha256`
    identifies the compact network's plan."""

    onnx: Path
    onnx_sha256: str
    path: Path
    precision: Precision
    target: str
    options: EngineOptions
    plan_sha256: str | None = None
    report: Report | None = None


class Builder(Protocol):
    """What a backend's folder gives."""

    @property
    def suffix(self) -> str:
        """Of the engine's file, e.g. ".engine"."""

    def version(self) -> str:
        """Of the library; `EngineUnavailable` where it is not installed or does not load."""

    def targets(self, requested: Sequence[str]) -> tuple[str, ...]:
        """What the engines built here are for; `EngineUnavailable` where none can be built, `UserError` for an unknown
        one."""

    def build(self, order: Order) -> Engine:
        """The engine, its manifest and its log, all or nothing but for the log. `EngineUnavailable` as above;
        `UserError`: the graph or an option is not for this library."""

    def preflight(self, engine: Path, manifest: Manifest, image: Image | None, target: str | None) -> Preflight:
        """Whether this machine, or a server's image on the GPU `target`, can load the engine."""


def builder(flavour: str) -> Builder:
    """The table's row; `UserError` for a flavour that has none."""
    if flavour not in BUILDERS:
        expected = f"{', '.join(('auto', *BUILDERS))} or none"
        raise UserError(f"flavour {flavour!r}", expected, "set engine.flavour to one of them")
    module, name = BUILDERS[flavour].split(":")
    return cast(Builder, getattr(import_module(module), name))


def choose(flavour: str, targets: Sequence[str]) -> Choice:
    """The flavour that builds here, and its targets; `auto` is the first of AUTO that can.

    `EngineUnavailable` where the flavour, or the device that it needs to build, is absent; `UserError` for an unknown
    flavour or target.
    """
    if flavour == "none":
        raise EngineUnavailable("engines are switched off (flavour none)")
    reasons: list[str] = []
    for name in AUTO if flavour == "auto" else (flavour,):
        try:
            return Choice(name, builder(name).targets(targets))
        except EngineUnavailable as error:
            reasons.append(str(error))
    raise EngineUnavailable("; ".join(reasons))


def engine_name(stem: str, precision: str, target: str, flavour: str) -> str:
    """File name of an engine: dense.fp16.SM86.engine."""
    return f"{stem}.{precision}.{target}{builder(flavour).suffix}"


def engine_from_onnx(
    onnx: Path,
    path: Path,
    *,
    flavour: str = "auto",
    precision: Precision = "fp32",
    target: str = "CURRENT",
    options: EngineOptions | None = None,
    plan_sha256: str | None = None,
    report: Report | None = None,
) -> Engine:
    """Builds `path` from `onnx`; writes `<path>.json` (manifest) and `<path>.log` (the builder's messages) beside it.

    `precision` is the one that the graph is in; `target` a compute capability (SM86), several for one engine
    (SM86+SM89), CURRENT, or CPU, as the flavour has them. All or nothing is written, but for the log, which stays after
    a failure too. `EngineUnavailable`: no flavour can build here. `UserError`: the graph is unreadable, its products
    are not in `precision`, its batch does not fit the profiles, an option is not for this library, the builder refuses
    it (with its first error), crashes, or takes longer than `options.time_limit_s` seconds.
    """
    digest = sha256(onnx)
    choice = choose(flavour, (target,))
    settled = options or EngineOptions()
    order = Order(onnx, digest, path, precision, choice.targets[0], settled, plan_sha256, report)
    return builder(choice.flavour).build(order)
