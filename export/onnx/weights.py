"""How many weights of an ONNX file are 0, what the file would take with sparse initialisers, and whether 2:4 holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.onnx import graph

GROUP, LIVING = 4, 2
"""Sparse tensor cores want at most 2 of every 4 weights along the inputs."""
INDEX_BYTES = 8


@dataclass(frozen=True)
class Weights:
    """Of convolutions and linear layers, whole weights; biases are not counted."""

    count: int
    living: int
    """That are not 0."""
    bytes: int
    """Of the file as it is."""
    sparse_bytes: int | None
    """Of `sparse_path`, the file with sparse initialisers; None where there is none."""
    sparse_path: Path | None
    reason: str | None
    """Why there is none."""
    two_of_four: tuple[str, ...]
    """Weights in which 2:4 holds in every group along the inputs."""
    groups: int
    """Of 4 weights along the inputs, in all layers whose inputs divide by 4."""
    groups_that_fit: int


def weights_of(path: Path, out: Path, samples: graph.Array | graph.Feeds) -> Weights:
    """Of the file `path`. Writes `out` with sparse initialisers where that is smaller, and ONNX Runtime loads it and
    computes the same on `samples`. UserError: `path` is no ONNX file."""
    model = graph.read_graph(path)
    count = living = groups = fitting = 0
    holds: list[str] = []
    for name, weight, axis in _weights(model):
        count, living = count + weight.size, living + int(np.count_nonzero(weight))
        all_groups, fit = two_of_four(weight, axis)
        groups, fitting = groups + all_groups, fitting + fit
        holds += [name] if all_groups and all_groups == fit else []
    size, reason, sparse_bytes = path.stat().st_size, None, None
    sparse = with_sparse_initialisers(model)
    if sparse.ByteSize() >= size:
        reason = "it would not be smaller: a weight that lives takes its place beside its value"
    else:
        reason = _difference(model, sparse, graph.feeds_of(model, samples, path))
    if reason is None:
        sparse_bytes = graph.write_graph(sparse, out)
    written = None if reason else out
    return Weights(count, living, size, sparse_bytes, written, reason, tuple(holds), groups, fitting)


def two_of_four(weight: graph.Array, axis: int) -> tuple[int, int]:
    """Groups of 4 along `axis`, and those with at most 2 values that are not 0; (0, 0) where they do not divide."""
    if weight.shape[axis] % GROUP:
        return 0, 0
    living = np.count_nonzero(np.moveaxis(weight, axis, -1).reshape(-1, GROUP), axis=1)
    return len(living), int((living <= LIVING).sum())


def with_sparse_initialisers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which tensors that are smaller so are COO with linear indices (onnx.SparseTensorProto)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    listed = {value.name for value in copy.graph.input}  # old files list weights there, which must then be dense
    dense = list(copy.graph.initializer)
    copy.graph.ClearField("initializer")
    for tensor in dense:
        values = numpy_helper.to_array(tensor)
        flat = values.reshape(-1)
        places = np.flatnonzero(flat)
        smaller = len(places) * (values.itemsize + INDEX_BYTES) < values.nbytes
        if not smaller or tensor.name in listed or values.dtype != np.float32 or not len(places):
            copy.graph.initializer.append(tensor)
            continue
        entries = numpy_helper.from_array(flat[places], tensor.name)
        indices = numpy_helper.from_array(places.astype(np.int64))
        copy.graph.sparse_initializer.append(helper.make_sparse_tensor(entries, indices, list(values.shape)))
    return copy


def _weights(model: onnx.ModelProto) -> Iterator[tuple[str, graph.Array, int]]:
    """(name, values, axis of the inputs) of each weight of a Conv, Gemm or MatMul; a shared one once."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in tensors or node.input[1] in seen:
            continue
        seen.add(node.input[1])
        values = numpy_helper.to_array(tensors[node.input[1]])
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        yield node.input[1], values, 1 if node.op_type == "Conv" or transposed else values.ndim - 2


def _difference(model: onnx.ModelProto, sparse: onnx.ModelProto, feeds: graph.Feeds) -> str | None:
    """Why ONNX Runtime does not take `sparse` for `model`; None where it does."""
    fixed = graph.fixed_batch(model)
    rows = {name: values if fixed is None else graph.rows(values, fixed) for name, values in feeds.items()}
    try:
        expected, answers = (graph.run_graph(graph.open_graph(one), rows) for one in (model, sparse))
    except graph.GraphError as error:
        return f"ONNX Runtime refuses it: {error}"
    same = all(np.array_equal(a, b) for a, b in zip(expected, answers, strict=True))
    return None if same else "ONNX Runtime computes something else with it"
