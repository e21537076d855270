"""A lower precision written into the graph: TensorRT's networks are strongly typed and follow it.

The converter is ONNX Runtime's own (`onnxruntime.transformers.float16`): it comes with ONNX Runtime and knows which
inputs of which operator set must stay fp32. onnxconverter-common's, its ancestor, clips weights at 1e4 unless told
otherwise and is one more dependency; ModelOpt's AutoCast needs the GPU build of ONNX Runtime and CuPy. The converter
clips silently what fp16 cannot hold, and ONNX Runtime's CPU kernels compute an fp16 graph in fp32, so an overflow shows
in neither: both are looked for here, in the weights and in the activations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from export import graph
from runtime.errors import UserError

FP16_MAX = 65504.0
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # the layers whose precision decides speed and size
BATCH_SIZES = (1, 4)


@dataclass(frozen=True)
class CastGraph:
    """A graph in lower precision with fp32 inputs and outputs.

    `nodes_fp16`, `nodes_fp32`: nodes by the type of their output, casts and constants left out. `casts`: casts in it.
    `max_abs_diff`: largest difference of the outputs from the fp32 graph's in ONNX Runtime on the CPU. That measures
    the rounding of the weights; the CPU kernels do not round the activations.
    `largest`: largest magnitude of any activation in fp16, on the samples (fp16 ends at 65504).
    """

    path: Path
    precision: Literal["fp16"]
    nodes_fp16: int
    nodes_fp32: int
    casts: int
    bytes: int
    max_abs_diff: float
    largest: float


def cast(source: Path, path: Path, *, precision: Literal["fp16"], samples: graph.Array) -> CastGraph:
    """Writes the fp32 graph `source` to `path` with weights and arithmetic in fp16, inputs and outputs in fp32.

    `samples` (N, C, H, W) float32 are real inputs: the activations on their first four rows must fit fp16.
    `UserError`: a weight or an activation is beyond 65504, no convolution or matrix product ended in fp16, or ONNX
    Runtime does not run either graph.
    """
    assert precision == "fp16"
    model = graph.read_graph(source)
    graph.feeds_of(model, samples, source)
    fixed = graph.fixed_batch(model)
    _check_weights(model, source)
    converted = _to_fp16(model, source)
    types = _types(converted)
    counts = _counts(converted, types)
    if not any(types.get(node.output[0]) == onnx.TensorProto.FLOAT16 for node in _compute_nodes(converted)):
        raise UserError(
            f"no convolution or matrix product of {source} ended in fp16",
            "at least one of Conv, ConvTranspose, Gemm, MatMul",
            "leave fp16 out for this network",
        )
    try:
        largest = _largest_activation(model, types, graph.rows(samples, fixed or 4), source)
        sizes = BATCH_SIZES if fixed is None else (fixed,)
        worst = _difference(model, converted, [graph.rows(samples, size) for size in sizes])
    except graph.GraphError as error:
        raise UserError(
            f"ONNX Runtime fails on {source} or its fp16 form: {error}", "a graph that runs", "leave fp16 out"
        ) from error
    size = graph.write_graph(converted, path)
    return CastGraph(path, "fp16", *counts, size, worst, largest)


def _check_weights(model: onnx.ModelProto, source: Path) -> None:
    for name, values in _floats(model):
        finite = np.abs(values[np.isfinite(values)])
        if finite.size and finite.max() > FP16_MAX:
            raise UserError(
                f"{name!r} in {source} holds {finite.max():.6g}",
                "values up to 65504, the end of fp16",
                "leave fp16 out",
            )


def _floats(model: onnx.ModelProto) -> Iterator[tuple[str, graph.Array]]:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name, onnx.numpy_helper.to_array(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == onnx.TensorProto.FLOAT:
                yield node.output[0], onnx.numpy_helper.to_array(attribute.t)


def _to_fp16(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    bare = copy.deepcopy(model)
    real = {spec.name for spec in graph.inputs_of(model)}
    for value in [value for value in bare.graph.input if value.name not in real]:
        bare.graph.input.remove(value)  # a weight that is listed as an input would stay fp32, behind a cast
    bare.ir_version = max(bare.ir_version, 4)  # the first that allows weights outside the inputs
    try:
        converted = onnx_ir.from_proto(convert_float_to_float16(bare, keep_io_types=True))
        converted.graph.sort()  # the converter appends its casts at the end
        result: onnx.ModelProto = onnx_ir.to_proto(converted)
        result.graph.ClearField("value_info")
        onnx.checker.check_model(result, full_check=True)
    except Exception as error:  # the converter documents no exceptions of its own
        raise UserError(
            f"{source} cannot be converted to fp16: {graph.first_line(error)}", "a convertible graph", "leave fp16 out"
        ) from error
    return result


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value that shape inference can tell."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output, *inferred.input)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _compute_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in COMPUTE]


def _counts(model: onnx.ModelProto, types: dict[str, int]) -> tuple[int, int, int]:
    """Nodes in fp16, nodes in fp32, casts."""
    work = [types.get(n.output[0]) for n in model.graph.node if n.op_type not in ("Cast", "Constant")]
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    return work.count(onnx.TensorProto.FLOAT16), work.count(onnx.TensorProto.FLOAT), casts


def _largest_activation(model: onnx.ModelProto, types: dict[str, int], images: graph.Array, source: Path) -> float:
    """Largest magnitude, in the fp32 graph, of the values that are fp16 in the converted one."""
    names = [
        name
        for node in model.graph.node
        for name in node.output
        if types.get(name) == onnx.TensorProto.FLOAT16 and node.op_type != "Constant"
    ]
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    largest = 0.0
    for name, values in zip(names, graph.run_graph(graph.open_graph(watched), images), strict=True):
        peak = float(np.abs(values).max(initial=0.0))
        if not peak <= FP16_MAX:
            raise UserError(
                f"{name!r} in {source} reaches {peak:.6g} on the samples",
                "activations up to 65504, the end of fp16",
                "leave fp16 out, or scale the network down",
            )
        largest = max(largest, peak)
    return largest


def _difference(model: onnx.ModelProto, converted: onnx.ModelProto, batches: list[graph.Array]) -> float:
    full, half = graph.open_graph(model), graph.open_graph(converted)
    return max(graph.worst_difference(graph.run_graph(full, x), graph.run_graph(half, x)) for x in batches)
