"""Real requests and their answers, recorded beside a model: for load tests, for warming up, and for a first try.

`input-data.json` is the format of Triton's perf_analyzer; `sample-request.json` and `sample-response.json` are bodies
of the V2 inference protocol, which Triton, KServe and OpenVINO Model Server speak.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from export.onnx.graph import Array, GraphError, open_graph, read_graph, rows, run_graph
from export.serving.files import Model, copy_file
from export.serving.pbtxt import DATA_TYPES, Signature
from export.serving.release_index import Index
from runtime.documents import Kind, Section
from runtime.errors import UserError

SAMPLES = 4
_KIND = Kind("the recorded body that was published", "publish the run again", 256 << 20, links=False)
INPUT_DATA, REQUEST, RESPONSE = "input-data.json", "sample-request.json", "sample-response.json"


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, with the batch dimension; `outputs` None where nothing here computes them, as
    bfloat16 on a CPU."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array] | None


def record(
    model: Model, folder: Path, signature: Signature, samples: Array, root: Path, version: int
) -> list[Exchange]:
    """Up to four requests of one sample each (of the whole batch where that is fixed), with what the reference graph
    answers to each alone, else `version` of the model in `folder`. UserError: the samples do not fit the model.
    """
    spec = signature.inputs[0]
    batch = 1 if signature.max_batch else spec.shape[0] or 1
    fits = len(spec.shape) == samples.ndim and all(
        want in (None, got) for want, got in zip(spec.shape[1:], samples.shape[1:], strict=True)
    )
    if len(signature.inputs) != 1 or spec.dtype != str(samples.dtype) or not fits:
        raise UserError(
            f"samples {samples.dtype}{list(samples.shape[1:])} for {model.name!r}",
            f"one input {spec.dtype}{list(spec.shape[1:])}",
            "give samples that it takes, or none",
        )
    session = _reference(model, folder / str(version) / "model.onnx", root)
    exchanges = []
    for row in range(min(SAMPLES, len(samples))):
        images = rows(samples[row:], batch)
        outputs = None
        if session is not None:
            values = answers(session, images, model.name)
            outputs = {output.name: value for output, value in zip(signature.outputs, values, strict=True)}
        exchanges.append(Exchange({spec.name: images}, outputs))
    return exchanges


def _reference(model: Model, served: Path, root: Path) -> Any:
    if model.reference is None:
        if not served.exists():
            return None
        try:
            return open_graph(read_graph(served))
        except GraphError:  # e.g. ONNX Runtime has no bfloat16 convolution on the CPU
            return None
    copy = served.parent / "reference.tmp"
    copy_file(model.reference, copy, root)
    try:
        return open_graph(read_graph(copy, shown=model.reference))
    finally:
        copy.unlink()


def answers(session: Any, images: Array, name: str) -> list[Array]:
    """All outputs for `images`; UserError where ONNX Runtime fails on them."""
    try:
        return run_graph(session, images)
    except GraphError as error:
        raise UserError(
            f"ONNX Runtime fails on the samples for {name!r}: {error}", "a run", "give samples that it takes"
        ) from error


def write_recorded(folder: Path, name: str, exchanges: Sequence[Exchange], *, batched: bool) -> None:
    """The three files; without answers only requests."""
    document: dict[str, Any] = {"data": [_flat(exchange.inputs, batched) for exchange in exchanges]}
    answers = [exchange.outputs for exchange in exchanges if exchange.outputs is not None]
    if answers:
        document["validation_data"] = [_flat(outputs, batched) for outputs in answers]
    _write(folder / INPUT_DATA, document)
    _write(folder / REQUEST, {"inputs": tensors(exchanges[0].inputs)})
    if answers:
        _write(folder / RESPONSE, {"model_name": name, "outputs": tensors(answers[0])})


def write_warmup(folder: Path, exchange: Exchange, *, batched: bool) -> dict[str, tuple[str, Sequence[int]]]:
    """Raw bytes of one sample in `warmup/`, as `model_warmup` of config.pbtxt wants them; for `Extras.warmup`."""
    (folder / "warmup").mkdir()
    warmup: dict[str, tuple[str, Sequence[int]]] = {}
    for number, (name, array) in enumerate(exchange.inputs.items()):
        (folder / "warmup" / f"input{number}").write_bytes(np.ascontiguousarray(array).tobytes())
        warmup[name] = (f"input{number}", array.shape[batched:])
    return warmup


def tensors(arrays: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Tensors of a V2 body."""
    return [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": v2_type(str(array.dtype)),
            "data": array.ravel().tolist(),
        }
        for name, array in arrays.items()
    ]


def v2_type(dtype: str) -> str:
    """`float32` -> `FP32`; text is `BYTES`."""
    name = DATA_TYPES[dtype].removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


class RecordedTensor(Section):
    """A tensor of a V2 body; `data` is flat."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    shape: list[Annotated[int, Field(ge=0, lt=1 << 31)]] = Field(max_length=16)
    datatype: Annotated[str, Field(max_length=16)]
    data: list[bool | int | Annotated[float, Field(allow_inf_nan=False)] | str]


class _Request(Section):
    inputs: list[RecordedTensor] = Field(min_length=1, max_length=64)


class _Response(Section):
    model_name: str
    outputs: list[RecordedTensor] = Field(min_length=1, max_length=64)


def read_recorded(folder: Path, index: Index, model: str) -> tuple[dict[str, Any], list[RecordedTensor]]:
    """The recorded request of a model of the published `folder`, as a body, and the outputs recorded with it.

    UserError: a file is missing, over 256 MiB, not the one that the index lists, or no such body.
    """
    request = _read(folder, index, f"{model}/{REQUEST}", _Request)
    return request.model_dump(), _read(folder, index, f"{model}/{RESPONSE}", _Response).outputs


_Body = TypeVar("_Body", bound=Section)


def _read(folder: Path, index: Index, name: str, kind: type[_Body]) -> _Body:
    path = folder / name
    data = _KIND.read(path)
    if hashlib.sha256(data).hexdigest() != index.files.get(name):
        raise _KIND.error(path, " was changed")
    return _KIND.section(path, _KIND.parse(path, data), kind)


def _flat(arrays: Mapping[str, Array], batched: bool) -> dict[str, Any]:
    """Flat values and the shape, without the batch where the server adds it."""
    return {name: {"content": a.ravel().tolist(), "shape": list(a.shape[batched:])} for name, a in arrays.items()}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
