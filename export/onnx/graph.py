"""ONNX graphs on disk and in ONNX Runtime: read, write, describe, run, compare."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime.errors import UserError
from runtime.files import replacing

MAX_BYTES = 2**31 - 1  # protobuf's limit for one message

Array = NDArray[Any]
Feeds = dict[str, Array]
"""Rows for each input, by its name."""


class GraphError(Exception):
    """ONNX Runtime does not load or run the graph; the message is its reason on one line."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: `dtype` as NumPy names it, `shape` with None for a dimension that may vary."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def read_graph(path: Path, shown: Path | None = None) -> onnx.ModelProto:
    """The model in `path`, all weights inside the file; `UserError` if it is not a valid ONNX file.

    Messages name `shown` where `path` is a copy of it.
    """
    name = shown or path
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise UserError(f"{name} is missing", "an ONNX file", "check the path") from error
    except Exception as error:  # protobuf's DecodeError has no public common base
        raise UserError(f"{name} cannot be read: {first_line(error)}", "an ONNX file", "export it again") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise UserError(
            f"{name} keeps weights in another file", "all weights inside one ONNX file", "save it without external data"
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UserError(f"{name} is not valid ONNX: {first_line(error)}", "a valid graph", "export it again") from error
    return model


def write_graph(model: onnx.ModelProto, path: Path) -> int:
    """Writes the model as one file, atomically; bytes written. Over 2 GiB is a `UserError`."""
    check_size(model.ByteSize())
    data = model.SerializeToString(deterministic=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def check_size(size: int) -> None:
    """`UserError` where a model of `size` bytes cannot be one ONNX file."""
    if size > MAX_BYTES:
        raise UserError(
            f"the network takes {size / 2**30:.2f} GiB",
            "at most 2 GiB, the limit of one ONNX file",
            "use a smaller network",
        )


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that says something, or its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]


def inputs_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs to feed (weights that old files list among the inputs are left out)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in weights)


def outputs_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in model.graph.output)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set, 0 if the model imports none."""
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def name_nodes(model: onnx.ModelProto) -> None:
    """Gives a name to each node that has none, or another node's."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return TensorSpec(value.name, dtype, dims)


def feeds_of(model: onnx.ModelProto, samples: Array | Mapping[str, Array], name: Path) -> Feeds:
    """`samples` by the name of the input they are for: rows (N, ...), as many for each. One array: the only input.

    `UserError`: an input has none or a row has another shape. Types are made to fit.
    """
    inputs = inputs_of(model)
    listed = listing(inputs)
    if not isinstance(samples, Mapping):
        if len(inputs) != 1 or len(inputs[0].shape) != samples.ndim:
            raise UserError(
                f"{name} has the inputs {listed}", f"one input of {samples.ndim} axes", "give samples for each by name"
            )
        samples = {inputs[0].name: samples}
    feeds: Feeds = {}
    for spec in inputs:
        if spec.name not in samples:
            raise UserError(
                f"{name} has the inputs {listed}", f"samples for {spec.name}", "give samples for each by name"
            )
        array = samples[spec.name]
        if array.ndim != len(spec.shape) or any(
            want not in (None, got) for want, got in zip(spec.shape[1:], array.shape[1:], strict=True)
        ):
            raise UserError(
                f"the samples have the shape {list(array.shape[1:])}",
                f"{list(spec.shape[1:])} as {name} takes them",
                "use samples of the data set that the graph was exported for",
            )
        feeds[spec.name] = array.astype(spec.dtype, copy=False)
    return feeds


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The batch size that the inputs fix, None where it may vary."""
    return next((spec.shape[0] for spec in inputs_of(model) if spec.shape and spec.shape[0] is not None), None)


def listing(specs: Sequence[TensorSpec]) -> str:
    """Inputs or outputs on one line."""
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs) or "none"


def open_graph(source: Path | onnx.ModelProto) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU; `GraphError` if ONNX Runtime refuses the graph."""
    import onnxruntime

    from runtime.backends.onnxruntime import session_options

    options = session_options(len(os.sched_getaffinity(0)))
    data = str(source) if isinstance(source, Path) else source.SerializeToString()
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base below Exception
        raise GraphError(" ".join(str(error).split())[:300]) from error


def run_graph(session: Any, feeds: Array | Mapping[str, Array]) -> list[Array]:
    """All outputs for `feeds`, by input name or for the only input; `GraphError` if the run fails."""
    if not isinstance(feeds, Mapping):
        feeds = {session.get_inputs()[0].name: feeds}
    try:
        return list(session.run(None, dict(feeds)))
    except Exception as error:  # ONNX Runtime's errors share no base below Exception
        raise GraphError(" ".join(str(error).split())[:300]) from error


def rows(samples: Array, count: int) -> Array:
    """`count` rows of `samples`, taken in turn and again from the first when they run out."""
    return np.ascontiguousarray(samples[np.arange(count) % len(samples)])


def probes(samples: Feeds, batch_sizes: Sequence[int]) -> list[Feeds]:
    """For each batch size real rows, and noise (the same on every call).

    Noise has the mean and spread of float samples, and the values of integer ones in another order.
    """
    noise = np.random.default_rng(0)

    def drawn(values: Array, size: int) -> Array:
        shape = (size, *values.shape[1:])
        if values.dtype.kind != "f":
            return noise.choice(values.reshape(-1), shape)
        return noise.normal(float(values.mean()), max(float(values.std()), 1e-3), shape).astype(values.dtype)

    real = [{name: rows(values, size) for name, values in samples.items()} for size in batch_sizes]
    return real + [{name: drawn(values, size) for name, values in samples.items()} for size in batch_sizes]


def batch_of(feeds: Feeds) -> int:
    """Rows in it."""
    return len(next(iter(feeds.values())))


def worst_difference(first: Sequence[Array], second: Sequence[Array]) -> float:
    """Largest absolute difference over all outputs; infinite where shapes or non-finite entries differ."""
    assert len(first) == len(second)
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return float("inf")
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            gaps = np.where(same, 0.0, np.abs(a.astype(np.float64) - b.astype(np.float64)))
        worst = max(worst, float(np.nan_to_num(gaps, nan=np.inf, posinf=np.inf).max(initial=0.0)))
    return worst
