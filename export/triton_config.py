"""Triton's config.pbtxt, written from what a model itself says about its inputs and outputs.

The message is `ModelConfig` of Triton's model_config.proto, in protobuf's text format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from export.graph import TensorSpec, inputs_of, outputs_of
from export.manifest import Manifest
from runtime.errors import UserError

DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


@dataclass(frozen=True)
class Signature:
    """What a server must know of a model file.

    `max_batch` is the largest batch, 0 where the batch is fixed (it is then part of the dims); `preferred` the batch an
    engine is tuned for, None for ONNX.
    """

    platform: Literal["onnxruntime_onnx", "tensorrt_plan"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    preferred: int | None

    @property
    def interface(self) -> tuple[object, ...]:
        """What versions of one model must have in common."""
        return self.platform, self.inputs, self.outputs, self.max_batch == 0


def signature_of_onnx(model: onnx.ModelProto, max_batch: int) -> Signature:
    """`max_batch` holds where the batch is dynamic."""
    inputs = inputs_of(model)
    return Signature("onnxruntime_onnx", inputs, outputs_of(model), max_batch if _batched(inputs) else 0, None)


def signature_of_engine(engine: Manifest) -> Signature:
    """`UserError` where the engine does not take the single images that Triton sends when nothing else is waiting."""
    inputs = tuple(TensorSpec(t.name, t.dtype, tuple(t.shape)) for t in engine.inputs)
    outputs = tuple(TensorSpec(t.name, t.dtype, tuple(t.shape)) for t in engine.outputs)
    if not _batched(inputs):
        return Signature("tensorrt_plan", inputs, outputs, 0, None)
    ranges = [limits for profile in engine.profiles for limits in profile.values()]
    smallest = min((limits.min[0] for limits in ranges), default=1)
    if smallest > 1:
        raise UserError(
            f"{engine.file} takes batches from {smallest}", "batches from 1", "build it with engine.profile.min = 1"
        )
    return Signature("tensorrt_plan", inputs, outputs, engine.max_batch, ranges[0].opt[0] if ranges else None)


def config_text(name: str, signature: Signature, *, labels: str | None, instances: int, queue_delay_us: int) -> str:
    """The config of model `name`; `labels` is the file with the class names of the first output, None without them.

    All versions are served; a client that names none gets the highest. ONNX runs where the server finds it best,
    engines on GPUs. Requests wait at most `queue_delay_us` microseconds for others to share a batch with.
    """
    batched = signature.max_batch > 0
    lines = [
        f"name: {_quoted(name)}",
        f"platform: {_quoted(signature.platform)}",
        f"max_batch_size: {signature.max_batch}",
    ]
    for spec in signature.inputs:
        lines += _tensor("input", spec, batched, None)
    for position, spec in enumerate(signature.outputs):
        lines += _tensor("output", spec, batched, labels if position == 0 else None)
    lines.append("version_policy { all { } }")
    kind = "KIND_GPU" if signature.platform == "tensorrt_plan" else "KIND_AUTO"
    lines.append(f"instance_group {{ count: {instances} kind: {kind} }}")
    if batched:
        preferred = f" preferred_batch_size: {signature.preferred}" if signature.preferred else ""
        lines.append(f"dynamic_batching {{{preferred} max_queue_delay_microseconds: {queue_delay_us} }}")
    return "\n".join(lines) + "\n"


def _batched(inputs: tuple[TensorSpec, ...]) -> bool:
    return all(spec.shape and spec.shape[0] is None for spec in inputs)


def _tensor(kind: str, spec: TensorSpec, batched: bool, labels: str | None) -> list[str]:
    if spec.dtype not in DATA_TYPES:
        raise UserError(f"{kind} {spec.name!r} is of type {spec.dtype}", f"one of {', '.join(DATA_TYPES)}", "cast it")
    dims = [-1 if dim is None else dim for dim in spec.shape[batched:]]
    shape = [f"dims: {dims}"] if dims else ["dims: [1]", "reshape { shape: [] }"]  # Triton wants one dimension at least
    fields = [f"name: {_quoted(spec.name)}", f"data_type: {DATA_TYPES[spec.dtype]}", *shape]
    if labels is not None:
        fields.append(f"label_filename: {_quoted(labels)}")
    return [f"{kind} {{", *(f"  {field}" for field in fields), "}"]


def _quoted(text: str) -> str:
    """A string of protobuf's text format: printable ASCII as it is, all else as octal bytes."""
    plain = [chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()]
    return f'"{"".join(plain)}"'
