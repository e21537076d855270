"""`<engine>.json`, the sidecar that says what an engine is, how to build it again, and what was measured with it.

The engine file itself stays byte-pure: TensorRT and Triton refuse one with anything in front. `seal` is the SHA-256 of
all other keys, so that a manifest that was edited or cut short is refused: a guard against accidents, not against
somebody who computes a new seal.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from export.engines.options import EngineOptions
from runtime.backends import BACKENDS, SIDECAR_BYTES
from runtime.documents import Kind, Section, seal_of, write_sealed
from runtime.errors import UserError
from runtime.files import sha256

SCHEMA = 3
_KIND = Kind(
    f"a manifest of schema {SCHEMA}",
    "build the engine again, or bring the manifest that was written beside it",
    SIDECAR_BYTES,
)

Name = Annotated[str, Field(min_length=1, max_length=512)]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,4}([.+a-z-][0-9A-Za-z.+-]{0,32})?$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Dim = Annotated[int, Field(ge=1, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class Tensor(Section):
    """An input or output of the engine; null is the dynamic batch."""

    name: Name
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
    shape: list[Dim | None] = Field(max_length=8)


class Range(Section):
    """Shapes of one input in an optimisation profile."""

    min: list[Dim] = Field(max_length=8)
    opt: list[Dim] = Field(max_length=8)
    max: list[Dim] = Field(max_length=8)


class Source(Section):
    """A file that went into the engine; `file` is relative to the engine's folder."""

    file: Name
    sha256: Digest


class Cuda(Section):
    """`library`: the major version of CUDA that TensorRT was built for; `driver`: the version the builder's driver
    serves. Null where not known, or where there was none."""

    library: Version | None
    driver: Version | None


class Proof(Section):
    """Which layers compute in which type, see `proof.py`."""

    source: Literal["engine", "network"]
    precision: Precision
    share: Share
    products: dict[Name, Count]
    others: list[str] = Field(max_length=20)
    unknown: Count
    reformats: Count
    casts: Count
    quantizes: Count


class Latency(Section):
    """Of `n` launches with `batch` images, copies excluded."""

    batch: Dim
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    n: Dim


class Measured(Section):
    """What was measured with this very engine: on which GPU, top-1 accuracy as a fraction, and latency."""

    device: Name
    accuracy: Share | None
    latency: list[Latency] = Field(max_length=64)


class Manifest(Section):
    """`settings` are what the runtime runs it with where the builder fixes that; `weights` is a second file that the
    engine reads, null where it is one file."""

    schema_: Literal[3] = Field(alias="schema")
    file: Name
    sha256: Digest
    bytes: Count
    flavour: Name
    version: Version
    cuda: Cuda
    targets: list[Annotated[str, Field(pattern=r"^(SM[0-9]{2,3}|CPU)$")]] = Field(min_length=1, max_length=16)
    precision: Precision
    inputs: list[Tensor] = Field(min_length=1, max_length=64)
    outputs: list[Tensor] = Field(min_length=1, max_length=64)
    profiles: list[dict[Name, Range]] = Field(max_length=64)
    layers: dict[Name, dict[Name, Count]]
    proof: Proof
    options: EngineOptions
    settings: dict[Name, str | int | bool | None]
    onnx: Source
    weights: Source | None
    timing_cache: Source | None
    plan_sha256: Digest | None
    versions: dict[Name, str]
    gpu: Name | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    notes: list[str] = Field(max_length=64)
    measured: Measured | None

    @field_validator("weights")
    @classmethod
    def _beside(cls, weights: Source | None) -> Source | None:
        if weights is not None and Path(weights.file).name != weights.file:
            raise ValueError("expected a file beside the engine")
        return weights

    @field_validator("flavour")
    @classmethod
    def _runs_here(cls, flavour: str) -> str:
        if flavour not in BACKENDS:
            raise ValueError(f"Input should be one of {', '.join(BACKENDS)}")
        return flavour

    def command(self, flavour: str | None = None, target: str | None = None) -> str:
        """Rebuilds the engine when run in its folder, for another flavour and target where they are given."""
        words = ["python", "-m", "export", "rebuild", f"{self.file}.json"]
        words += ["--flavour", flavour] if flavour else []
        return shlex.join(words + (["--target", target] if target else []))

    @property
    def target(self) -> str:
        """The compute capabilities as file names have them, e.g. SM86 or SM86+SM89."""
        return "+".join(self.targets)

    @property
    def max_batch(self) -> int:
        """Largest batch that every input takes in some profile."""
        fixed = [tensor.shape[0] for tensor in self.inputs if tensor.shape and tensor.shape[0] is not None]
        profiles = [min((item.max[0] for item in profile.values() if item.max), default=1) for profile in self.profiles]
        return min([max(profiles), *fixed] if profiles else fixed, default=1)


def manifest_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def write(engine: Path, manifest: Manifest) -> Path:
    """Writes the sidecar of `engine`, sealed, atomically; its path."""
    path = manifest_path(engine)
    write_sealed(path, manifest.model_dump(by_alias=True))
    return path


def record(engine: Path, measured: Measured) -> Manifest:
    """Adds what was measured with `engine` to its manifest, once both are verified."""
    manifest = verify(engine).model_copy(update={"measured": measured})
    write(engine, manifest)
    return manifest


def read(engine: Path) -> Manifest:
    """The sidecar of `engine`; `UserError` if it is missing, over 1 MiB, no JSON, of another schema or wrong types, or
    was changed after it was sealed."""
    path = manifest_path(engine)
    document = _KIND.schema(path, _KIND.parse(path, _KIND.read(path)), SCHEMA)
    seal = document.pop("seal", None)
    manifest = _KIND.section(path, document, Manifest)
    if manifest.file != engine.name:
        raise UserError(f"{path} belongs to {manifest.file!r}", f"the manifest of {engine.name!r}", _KIND.remedy)
    if seal != seal_of(document):
        raise UserError(f"{path} was changed after it was written", "a manifest that fits its own seal", _KIND.remedy)
    return manifest


def verify(engine: Path) -> Manifest:
    """The manifest, once the engine's size and SHA-256 agree with it; else `UserError`."""
    manifest = read(engine)
    remedy = f"build it again: {manifest.command()}"
    if not engine.is_file():
        raise UserError(f"{engine} is missing", "the engine that its manifest describes", remedy)
    size = engine.stat().st_size
    if size != manifest.bytes:
        raise UserError(f"{engine} is {size} bytes long", f"{manifest.bytes} bytes as in its manifest", remedy)
    parts = [(engine, manifest.sha256)]
    if manifest.weights is not None:
        parts.append((engine.with_name(manifest.weights.file), manifest.weights.sha256))
    for path, expected in parts:
        digest = sha256(path)
        if digest != expected:
            raise UserError(
                f"{path} has the SHA-256 {digest[:12]}...", f"{expected[:12]}... as in its manifest", remedy
            )
    return manifest


def parts_of(engine: Path, manifest: Manifest) -> tuple[Path, ...]:
    """The files of an engine, but for its manifest and log."""
    return (engine,) if manifest.weights is None else (engine, engine.with_name(manifest.weights.file))
