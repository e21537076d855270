"""`demport preflight`: whether a machine can load an engine, said before anything is deserialised."""

from __future__ import annotations

import re
from pathlib import Path

from export.engines import builder
from export.engines.machine import Preflight
from export.engines.manifest import manifest_path, verify
from export.engines.triton_images import TritonImage, triton_image
from runtime.backends import ENGINE_SUFFIXES
from runtime.errors import UserError


def preflight(engine: Path, *, image: TritonImage | None = None, target: str | None = None) -> Preflight:
    """Says without deserialising whether this machine, or Triton's `image` on a GPU of compute capability `target`
    (default: this machine's), can load `engine`; without a manifest that is unknown.

    `UserError`: the engine is missing, no engine by its name, truncated or altered, or its manifest is not in order.
    """
    if not engine.is_file():
        problem = "is no file" if engine.exists() else "is missing"
        raise UserError(f"{engine} {problem}", "an engine file", "check the path")
    if not manifest_path(engine).exists():
        _demand_engine_name(engine)
        reason = f"{manifest_path(engine).name} is missing: nothing says what it was built for"
        return Preflight(engine, image.reference if image else "this machine", "unknown", (reason,), None)
    manifest = verify(engine)
    return builder(manifest.flavour).preflight(engine, manifest, image, target)


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
