"""`<engine>.json`, the sidecar that says what an engine is, how to build it again, and what was measured with it.

The engine file itself stays byte-pure: TensorRT and Triton refuse one with anything in front. `seal` is the SHA-256 of
all other keys, so that a manifest that was edited or cut short is refused: a guard against accidents, not against
somebody who computes a new seal.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from export.files import sha256, write_json
from export.flavours import Flavour
from runtime.backend import SIDECAR_BYTES
from runtime.errors import UserError
from runtime.files import read_bounded

SCHEMA = 2

Name = Annotated[str, Field(min_length=1, max_length=512)]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,4}([.+a-z-][0-9A-Za-z.+-]{0,32})?$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Dim = Annotated[int, Field(ge=1, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Tensor(_Section):
    """An input or output of the engine; null is the dynamic batch."""

    name: Name
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
    shape: list[Dim | None] = Field(max_length=8)


class Range(_Section):
    """Shapes of one input in an optimisation profile."""

    min: list[Dim] = Field(max_length=8)
    opt: list[Dim] = Field(max_length=8)
    max: list[Dim] = Field(max_length=8)


class Source(_Section):
    """A file that went into the engine; `file` is relative to the engine's folder."""

    file: Name
    sha256: Digest


class Cuda(_Section):
    """`library`: the major version of CUDA that TensorRT was built for; `driver`: the version the builder's driver
    serves. Null where not known, or where there was none."""

    library: Version | None
    driver: Version | None


class Options(_Section):
    """The options of the build."""

    workspace_mib: Count
    optimization_level: Count
    tf32: bool
    version_compatible: bool
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"]
    refit: bool
    sparse: bool
    pin_tactics: bool


class Proof(_Section):
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


class Latency(_Section):
    """Of `n` launches with `batch` images, copies excluded."""

    batch: Dim
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    n: Dim


class Measured(_Section):
    """What was measured with this very engine: on which GPU, top-1 accuracy as a fraction, and latency."""

    device: Name
    accuracy: Share | None
    latency: list[Latency] = Field(max_length=64)


class Manifest(_Section):
    schema_: Literal[2] = Field(alias="schema")
    file: Name
    sha256: Digest
    bytes: Count
    flavour: Flavour
    version: Version
    cuda: Cuda
    targets: list[Annotated[str, Field(pattern=r"^SM[0-9]{2,3}$")]] = Field(min_length=1, max_length=16)
    precision: Precision
    inputs: list[Tensor] = Field(min_length=1, max_length=64)
    outputs: list[Tensor] = Field(min_length=1, max_length=64)
    profiles: list[dict[Name, Range]] = Field(max_length=64)
    layers: dict[Name, dict[Name, Count]]
    proof: Proof
    options: Options
    onnx: Source
    timing_cache: Source | None
    plan_sha256: Digest | None
    versions: dict[Name, str]
    gpu: Name | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    notes: list[str] = Field(max_length=64)
    measured: Measured | None
    command: Annotated[str, Field(max_length=8192)]

    @field_validator("command")
    @classmethod
    def _rebuilds(cls, command: str) -> str:
        """People are shown it to run it: one command, ours, whose options can be exchanged."""
        words = shlex.split(command)
        ours = words[:3] == ["python", "-m", "export"] and {"--flavour", "--target"} <= set(words[:-1])
        if not ours or shlex.join(words) != command:
            raise ValueError("expected one command, python -m export ONNX ENGINE --flavour ... --target ...")
        return command

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
    content = manifest.model_dump(by_alias=True)
    write_json(path, {**content, "seal": _seal(content)})
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
    remedy = "build the engine again, or bring the manifest that was written beside it"
    document = _document(path, remedy)
    seal = document.pop("seal", None)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place}: {first['msg']}", f"a manifest of schema {SCHEMA}", remedy) from error
    if manifest.file != engine.name:
        raise UserError(f"{path} belongs to {manifest.file!r}", f"the manifest of {engine.name!r}", remedy)
    if seal != _seal(document):
        raise UserError(f"{path} was changed after it was written", "a manifest that fits its own seal", remedy)
    return manifest


def _document(path: Path, remedy: str) -> dict[str, Any]:
    """The file as a JSON object of our schema."""
    try:
        data = read_bounded(path, SIDECAR_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "the engine's manifest", remedy) from error
    try:
        document: Any = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "a manifest", remedy) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is not int or schema != SCHEMA:  # True == 1, and is none
        found = schema if type(schema) is int and 0 <= schema < 1000 else f"a {type(schema).__name__}"
        raise UserError(f"{path} has the schema {found}", f"schema {SCHEMA}", remedy)
    assert isinstance(document, dict)
    return document


def _seal(content: dict[str, Any]) -> str:
    """SHA-256 of the keys in order without white space."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(engine: Path) -> Manifest:
    """The manifest, once the engine's size and SHA-256 agree with it; else `UserError`."""
    manifest = read(engine)
    remedy = f"build it again: {manifest.command}"
    if not engine.is_file():
        raise UserError(f"{engine} is missing", "the engine that its manifest describes", remedy)
    size = engine.stat().st_size
    if size != manifest.bytes:
        raise UserError(f"{engine} is {size} bytes long", f"{manifest.bytes} bytes as in its manifest", remedy)
    digest = sha256(engine)
    if digest != manifest.sha256:
        raise UserError(
            f"{engine} has the SHA-256 {digest[:12]}...", f"{manifest.sha256[:12]}... as in its manifest", remedy
        )
    return manifest
