"""fp16 and bf16 written into a graph: weights, arithmetic and casts.

The converter is ONNX Runtime's own (`onnxruntime.transformers.float16`): it comes with ONNX Runtime and knows which
inputs of which operator set must stay fp32. It knows fp16 only. For bf16 its result gets that type in fp16's place, its
weights anew from the fp32 graph, and operator set 22, the first whose convolutions and poolings take bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx import graph
from export.onnx.rounded import LOW
from runtime.errors import UserError

FP16_MAX = 65504.0
BF16_OPSET = 22
Half = Literal["fp16", "bf16"]


def to_half(model: onnx.ModelProto, precision: Half, keep: Collection[str], source: Path) -> onnx.ModelProto:
    """`model` (fp32) in `precision` between fp32 inputs and outputs; the nodes named in `keep` stay fp32.

    Operators that do not take the type stay fp32 too. Weights beyond fp16 must be read by kept nodes alone: see
    `too_large`. `UserError`: the converter fails.
    """
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    bare = copy.deepcopy(model)
    real = {spec.name for spec in graph.inputs_of(model)}
    for value in [value for value in bare.graph.input if value.name not in real]:
        bare.graph.input.remove(value)  # a weight that is listed as an input would stay fp32, behind a cast
    bare.ir_version = max(bare.ir_version, 4)  # the first that allows weights outside the inputs
    try:
        if precision == "bf16" and graph.opset_of(bare) < BF16_OPSET:
            bare = onnx.version_converter.convert_version(bare, BF16_OPSET)
        weights = {tensor.name: tensor for tensor in _constants(copy.deepcopy(bare))}
        blocked = [*keep, *(_without_bf16(bare) if precision == "bf16" else ())]
        converted = convert_float_to_float16(bare, keep_io_types=True, node_block_list=blocked)
        if precision == "bf16":
            _exchange_type(converted, weights)
        _join_kept(converted)
        sorted_graph = onnx_ir.from_proto(converted)
        sorted_graph.graph.sort()  # the converter appends its casts at the end
        result: onnx.ModelProto = onnx_ir.to_proto(sorted_graph)
        result.graph.ClearField("value_info")
        result.ClearField("metadata_props")
        result.metadata_props.extend(model.metadata_props)
        onnx.checker.check_model(result, full_check=True)
    except Exception as error:  # the converter documents no exceptions of its own
        raise UserError(
            f"{source} cannot be converted to {precision}: {graph.first_line(error)}",
            "a convertible graph",
            f"leave {precision} out",
        ) from error
    return result


def too_large(model: onnx.ModelProto) -> dict[str, float]:
    """Weights and constants whose largest finite magnitude is beyond fp16, by name: that magnitude."""
    peak_of = {}
    for tensor in _constants(model):
        values = np.abs(numpy_helper.to_array(tensor)) if tensor.data_type == TensorProto.FLOAT else np.zeros(0)
        peak = float(values[np.isfinite(values)].max(initial=0.0))
        if peak > FP16_MAX:
            peak_of[tensor.name] = peak
    return peak_of


def peaks(model: onnx.ModelProto, samples: graph.Array) -> dict[str, float]:
    """Largest magnitude of each fp32 value that the graph makes from `samples` (N, ...), its only input, by name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output)
    names = [value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    answers = graph.run_graph(graph.open_graph(watched), samples)
    return {name: float(np.abs(value).max(initial=0.0)) for name, value in zip(names, answers, strict=True)}


def _constants(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Weights, and tensors in attributes under the name of their node's output."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.name = node.output[0]
                yield attribute.t


def _join_kept(model: onnx.ModelProto) -> None:
    """Lets nodes in fp32 read what nodes in fp32 write: the converter passes it through the lower type."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}

    def target(node: onnx.NodeProto) -> int:
        return int(next(attribute.i for attribute in node.attribute if attribute.name == "to"))

    outputs = {value.name for value in model.graph.output}
    for name, node in list(casts.items()):
        down = casts.get(node.input[0])
        if down is None or target(node) != TensorProto.FLOAT or target(down) not in LOW or name in outputs:
            continue
        for reader in model.graph.node:
            for index, read in enumerate(reader.input):
                if read == name:
                    reader.input[index] = down.input[0]
    for _ in range(2):  # first the casts back, then those that only they read
        read_names = {name for node in model.graph.node for name in node.input} | outputs
        unread = [n for n in model.graph.node if n.op_type == "Cast" and n.output[0] not in read_names]
        for node in unread:
            model.graph.node.remove(node)


def _without_bf16(model: onnx.ModelProto) -> list[str]:
    """Nodes whose operator, in this model's operator set, does not take bfloat16."""
    version = graph.opset_of(model)
    names = []
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, version):
            constraints = onnx.defs.get_schema(node.op_type, version).type_constraints
            floats = [item.allowed_type_strs for item in constraints if "tensor(float)" in item.allowed_type_strs]
            if all("tensor(bfloat16)" in allowed for allowed in floats):
                continue
        names.append(node.name)
    return names


def _exchange_type(model: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> None:
    """bfloat16 wherever the converter wrote fp16; values from `weights`, which fp16 has not rounded yet."""
    from ml_dtypes import bfloat16

    for tensor in _constants(model):
        if tensor.data_type == TensorProto.FLOAT16:
            exact = numpy_helper.to_array(weights.get(tensor.name, tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact.astype(bfloat16), tensor.name))
    for node in model.graph.node:
        for index, attribute in enumerate(node.attribute):
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                node.attribute[index].CopyFrom(helper.make_attribute(attribute.name, TensorProto.BFLOAT16))
    model.graph.ClearField("value_info")
