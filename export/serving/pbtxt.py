"""Triton's config.pbtxt, written from what a model itself says about its inputs and outputs.

The message is `ModelConfig` of Triton's model_config.proto, in protobuf's text format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx

from export.engines.manifest import Manifest, Range
from export.onnx.graph import TensorSpec, inputs_of, outputs_of
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
    "object": "TYPE_STRING",
}
LABELS = "labels.txt"


@dataclass(frozen=True)
class Serving:
    """How a server runs a model.

    `instances` per device; requests wait at most `queue_delay_us` microseconds for others to share a batch with;
    `preferred` batches, None for those an engine is tuned for; `versions` to serve, None for all. `cuda_graphs` holds
    for engines: Triton captures one for a single image and one for each preferred batch.
    """

    instances: int = 1
    queue_delay_us: int = 100
    preferred: tuple[int, ...] | None = None
    versions: tuple[int, ...] | None = None
    warmup: bool = True
    cuda_graphs: bool = False


@dataclass(frozen=True)
class Signature:
    """What a server must know of a model file.

    `max_batch` is the largest batch, 0 where the batch is fixed (it is then part of the dims); `preferred` the batches
    an engine is tuned for, none for ONNX; `profiles` the number of an engine's optimisation profiles, 0 for ONNX.
    """

    platform: Literal["onnxruntime_onnx", "tensorrt_plan"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    preferred: tuple[int, ...] = ()
    profiles: int = 0

    @property
    def interface(self) -> tuple[object, ...]:
        """What versions of one model must have in common."""
        return self.platform, self.inputs, self.outputs, self.max_batch == 0, self.profiles


@dataclass(frozen=True)
class Extras:
    """What stands beside the model files: class names of the first output, and a sample to warm up with.

    `warmup` is input name -> (file in `warmup/`, dims of the sample without the batch).
    """

    labels: bool = False
    warmup: Mapping[str, tuple[str, Sequence[int]]] = field(default_factory=dict)


NO_EXTRAS = Extras()


def signature_of_onnx(model: onnx.ModelProto, max_batch: int) -> Signature:
    """`max_batch` holds where the batch is dynamic."""
    inputs = inputs_of(model)
    return Signature("onnxruntime_onnx", inputs, outputs_of(model), max_batch if _batched(inputs) else 0)


def signature_of_engine(engine: Manifest, max_batch: int | None = None) -> Signature:
    """`max_batch`, or what the profiles take from a single image on without a gap, whichever is less.

    `UserError` where the engine does not take the single images that Triton sends when nothing else is waiting.
    """
    inputs = tuple(TensorSpec(t.name, t.dtype, tuple(t.shape)) for t in engine.inputs)
    outputs = tuple(TensorSpec(t.name, t.dtype, tuple(t.shape)) for t in engine.outputs)
    profiles = len(engine.profiles)
    if not _batched(inputs):
        return Signature("tensorrt_plan", inputs, outputs, 0, (), profiles)
    ranges = [limits for profile in engine.profiles for limits in profile.values()]
    if any(not limits.min or not limits.opt or not limits.max for limits in ranges):
        raise UserError(f"{engine.file} has a profile without a batch", "batches in every profile", "build it again")
    reach = _reach(engine.profiles)
    if reach < 1:
        smallest = min((limits.min[0] for limits in ranges), default=0)
        raise UserError(
            f"{engine.file} takes batches from {smallest}", "batches from 1", "build it with engine.profile.min = 1"
        )
    largest = min(reach, max_batch or reach)
    opts = sorted({limits.opt[0] for limits in ranges})
    preferred = tuple(size for size in opts if 1 < size <= largest)
    return Signature("tensorrt_plan", inputs, outputs, largest, preferred, profiles)


def _reach(profiles: Sequence[Mapping[str, Range]]) -> int:
    """The largest batch up to which some profile takes each one; Triton picks the nearest profile for every batch."""
    reach = 1 if not profiles else 0
    spans = [(max(x.min[0] for x in p.values()), min(x.max[0] for x in p.values())) for p in profiles if p]
    for low, high in sorted(spans):
        if low > reach + 1:
            break
        reach = max(reach, high)
    return reach


def config_text(name: str, signature: Signature, serving: Serving, extras: Extras = NO_EXTRAS) -> str:
    """The config of model `name`. A client that names no version gets the highest one served.

    ONNX runs where the server finds it best, engines on GPUs. `UserError`: a preferred batch over the largest.
    """
    batched = signature.max_batch > 0
    lines = [
        f"name: {quoted(name)}",
        f"platform: {quoted(signature.platform)}",
        f"max_batch_size: {signature.max_batch}",
    ]
    for spec in signature.inputs:
        lines += tensor_lines("input", spec, batched)
    for position, spec in enumerate(signature.outputs):
        lines += tensor_lines("output", spec, batched, LABELS if extras.labels and position == 0 else None)
    policy = "all { }" if serving.versions is None else f"specific {{ versions: {list(serving.versions)} }}"
    lines.append(f"version_policy {{ {policy} }}")
    engine = signature.platform == "tensorrt_plan"
    names = ", ".join(quoted(str(index)) for index in range(signature.profiles))
    profile = f" profile: [{names}]" if engine and signature.profiles > 1 else ""
    lines.append(
        f"instance_group {{ count: {serving.instances} kind: {'KIND_GPU' if engine else 'KIND_AUTO'}{profile} }}"
    )
    sizes = preferred_batches(name, signature, serving)
    if batched:
        preferred = f" preferred_batch_size: {list(sizes)}" if sizes else ""
        lines.append(f"dynamic_batching {{{preferred} max_queue_delay_microseconds: {serving.queue_delay_us} }}")
    captured = sorted({1, *sizes}) if batched else [0]
    if serving.cuda_graphs and engine:
        lines += _cuda_graphs(signature, captured)
    if serving.warmup and extras.warmup:
        lines += [line for size in captured for line in _warmup(signature, size, extras)]
    return "\n".join(lines) + "\n"


def preferred_batches(name: str, signature: Signature, serving: Serving) -> tuple[int, ...]:
    """Batches the scheduler aims at; `UserError` for one the model does not take."""
    if not signature.max_batch or serving.preferred is None:
        return signature.preferred
    wrong = [size for size in serving.preferred if not 1 <= size <= signature.max_batch]
    if wrong:
        raise UserError(
            f"the preferred batch {wrong[0]} for {name!r}",
            f"1 to {signature.max_batch}",
            "set publish.preferred_batches",
        )
    return tuple(sorted(set(serving.preferred)))


def _batched(inputs: tuple[TensorSpec, ...]) -> bool:
    return all(spec.shape and spec.shape[0] is None for spec in inputs)


def _cuda_graphs(signature: Signature, sizes: Sequence[int]) -> list[str]:
    batched = signature.max_batch > 0
    shapes = [(spec.name, spec.shape[batched:]) for spec in signature.inputs]
    if any(dim is None for _, shape in shapes for dim in shape):
        raise UserError("CUDA graphs for an input of open size", "inputs of one size", "set publish.cuda_graphs=false")
    inputs = " ".join(f"input {{ key: {quoted(name)} value {{ dim: {list(shape)} }} }}" for name, shape in shapes)
    specs = [f"    graph_spec {{ batch_size: {size} {inputs} }}" for size in sizes]
    return ["optimization {", "  cuda {", "    graphs: true", *specs, "  }", "}"]


def _warmup(signature: Signature, size: int, extras: Extras) -> list[str]:
    """A request of `size` times the sample, before the model takes others; 0 for a model without batches."""
    lines = ["model_warmup {", f'  name: "batch {size or "fixed"}"', f"  batch_size: {size}"]
    for spec in signature.inputs:
        file, dims = extras.warmup[spec.name]
        value = f"data_type: {DATA_TYPES[spec.dtype]} dims: {list(dims)} input_data_file: {quoted(file)}"
        lines.append(f"  inputs {{ key: {quoted(spec.name)} value {{ {value} }} }}")
    return [*lines, "}"]


def tensor_lines(kind: str, spec: TensorSpec, batched: bool, labels: str | None = None) -> list[str]:
    """The message of one input or output, its dims without the batch where Triton adds it."""
    if spec.dtype not in DATA_TYPES:
        raise UserError(f"{kind} {spec.name!r} is of type {spec.dtype}", f"one of {', '.join(DATA_TYPES)}", "cast it")
    dims = [-1 if dim is None else dim for dim in spec.shape[batched:]]
    shape = [f"dims: {dims}"] if dims else ["dims: [1]", "reshape { shape: [] }"]  # Triton wants one dimension at least
    fields = [f"name: {quoted(spec.name)}", f"data_type: {DATA_TYPES[spec.dtype]}", *shape]
    if labels is not None:
        fields.append(f"label_filename: {quoted(labels)}")
    return [f"{kind} {{", *(f"  {field}" for field in fields), "}"]


def quoted(text: str) -> str:
    """A string of protobuf's text format: printable ASCII as it is, all else as octal bytes."""
    plain = [chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()]
    return f'"{"".join(plain)}"'
