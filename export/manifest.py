"""`<engine>.json`, the sidecar that says what an engine is, and what it takes to load it.

The engine file itself stays byte-pure: TensorRT and Triton refuse one with anything in front. General TensorRT cannot
say in advance whether it will load an engine, so `preflight` compares the sidecar with the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from export.files import sha256, write_json
from export.flavours import EngineUnavailable, Flavour, load
from export.gpu import first_gpu
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, UserError

SCHEMA = 1
MAX_BYTES = 1 << 20

Name = Annotated[str, Field(min_length=1, max_length=512)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Dim = Annotated[int, Field(ge=1, lt=2**31)]


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


class Manifest(_Section):
    schema_: Literal[1] = Field(alias="schema")
    file: Name
    sha256: Digest
    bytes: Count
    flavour: Flavour
    version: Name
    target: Annotated[str, Field(pattern=r"^SM[0-9]{2,3}$")]
    precision: Literal["fp32", "fp16"]
    inputs: list[Tensor] = Field(min_length=1, max_length=64)
    outputs: list[Tensor] = Field(min_length=1, max_length=64)
    profiles: list[dict[Name, Range]] = Field(max_length=64)
    layers: dict[Name, dict[Name, Count]]
    tf32: bool
    workspace_mib: Count
    optimization_level: Count
    onnx: Source
    plan_sha256: Digest | None
    versions: dict[Name, str]
    gpu: Name | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    command: Annotated[str, Field(max_length=8192)]

    @property
    def max_batch(self) -> int:
        """Largest batch that every input takes."""
        ranges = [item.max[0] for profile in self.profiles for item in profile.values() if item.max]
        fixed = [tensor.shape[0] for tensor in self.inputs if tensor.shape and tensor.shape[0] is not None]
        return min([*ranges, *fixed], default=1)


@dataclass(frozen=True)
class Preflight:
    """Whether this machine can load an engine, and why not or why that is not known."""

    engine: Path
    status: Literal["ok", "wrong machine", "unknown"]
    reasons: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return {"ok": EXIT_PASS, "wrong machine": EXIT_GATE_FAILED, "unknown": EXIT_INCONCLUSIVE}[self.status]


def manifest_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def write(engine: Path, manifest: Manifest) -> Path:
    """Writes the sidecar of `engine`, atomically; its path."""
    path = manifest_path(engine)
    write_json(path, manifest.model_dump(by_alias=True))
    return path


def read(engine: Path) -> Manifest:
    """The sidecar of `engine`; `UserError` if it is missing, over 1 MiB, no JSON, of another schema or wrong types."""
    path = manifest_path(engine)
    remedy = "build the engine again, or bring the manifest that was written beside it"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "the engine's manifest", remedy) from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is over {MAX_BYTES} bytes", "a manifest", remedy)
    try:
        document: Any = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "a manifest", remedy) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is not int or schema != SCHEMA:  # True == 1, and is none
        found = schema if type(schema) is int and 0 <= schema < 1000 else f"a {type(schema).__name__}"
        raise UserError(f"{path} has the schema {found}", f"schema {SCHEMA}", remedy)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place}: {first['msg']}", f"a manifest of schema {SCHEMA}", remedy) from error
    if manifest.file != engine.name:
        raise UserError(f"{path} belongs to {manifest.file!r}", f"the manifest of {engine.name!r}", remedy)
    return manifest


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


def preflight(engine: Path) -> Preflight:
    """Says without deserialising whether this machine can load `engine`.

    `wrong machine`: the flavour is not installed, there is no GPU, or the version or compute capability do not fit.
    `unknown`: no manifest, or an RTX engine for another compute capability about which the runtime gives no answer.
    `UserError`: the engine is missing, truncated or altered, or its manifest is unreadable.
    """
    if not engine.is_file():
        raise UserError(f"{engine} is missing", "an engine file", "check the path")
    if not manifest_path(engine).exists():
        return Preflight(
            engine, "unknown", (f"{manifest_path(engine).name} is missing: nothing tells what it was built for",)
        )
    manifest = verify(engine)
    gpu = first_gpu()
    reasons = [] if gpu is not None else ["no NVIDIA GPU or driver was found"]
    try:
        trt = load(manifest.flavour)
    except EngineUnavailable as error:
        return Preflight(engine, "wrong machine", (str(error), *reasons))
    if _release(trt.__version__) != _release(manifest.version):
        reasons.append(f"{manifest.flavour} is {trt.__version__} here, the engine was built by {manifest.version}")
    if reasons or gpu is None:
        return Preflight(engine, "wrong machine", tuple(reasons))
    if manifest.flavour == "tensorrt_rtx":
        return _asked_rtx(trt, engine, manifest.target, gpu.target)
    if gpu.target != manifest.target:
        return Preflight(engine, "wrong machine", (f"the GPU is {gpu.target}, the engine is for {manifest.target}",))
    return Preflight(engine, "ok", ())


def _release(version: str) -> list[str]:
    """Major, minor and patch: within them engines load, across them they do not."""
    return version.split(".")[:3]


def _asked_rtx(trt: Any, engine: Path, target: str, current: str) -> Preflight:
    """TensorRT-RTX answers for itself, from the engine's bytes."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    validity, diagnostics = trt.Runtime(logger).get_engine_validity(engine.read_bytes())
    names = [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(diagnostics) & int(bit)]
    if validity == trt.EngineValidity.VALID:
        return Preflight(engine, "ok", ())
    if validity == trt.EngineValidity.SUBOPTIMAL:
        return Preflight(engine, "ok", ("TensorRT-RTX would run it slower than one built for this GPU", *names))
    if "CUDA_ERROR" in names or not names:
        reason = f"TensorRT-RTX gives no reason; the GPU is {current}, the engine is for {target}"
        return Preflight(engine, "unknown", (reason, *names))
    return Preflight(engine, "wrong machine", (f"TensorRT-RTX refuses it: {', '.join(names)}",))
