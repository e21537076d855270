"""A graph in fp16 or bf16 as one in fp32 that rounds every value to that type: what a GPU computes, run on a CPU.

ONNX Runtime's CPU kernels compute fp16 graphs in fp32 between casts of their own choice, and have no bfloat16
convolution at all. Here each result is computed in fp32 and rounded once, as tensor cores do: products of rounded
values, summed in fp32. Overflow becomes infinity, as there.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
MOVES = frozenset(
    "Relu MaxPool GlobalMaxPool Reshape Flatten Transpose Squeeze Unsqueeze Identity Slice Split Concat Gather Expand"
    " Dropout Neg Abs Max Min".split()
)
"""Operators whose results are values they were given: rounded already."""


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with every fp16 and bf16 value held in fp32 and rounded where it is made. Same inputs and outputs.

    Inputs and outputs of the model itself must be of other types.
    """
    types = value_types(model)
    plain = copy.deepcopy(model)
    plain.graph.ClearField("value_info")
    for tensor in plain.graph.initializer:
        _widen(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in plain.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
        rounded_outputs = [name for name in node.output if types.get(name) in LOW]
        nodes.append(node)
        if node.op_type in MOVES or node.op_type == "Constant":
            continue
        for name in rounded_outputs:
            low = types[name]
            if node.op_type == "Cast":
                node.output[0] = f"{name}__rounded"
            else:
                node.output[list(node.output).index(name)] = f"{name}__exact"
                nodes.append(helper.make_node("Cast", [f"{name}__exact"], [f"{name}__rounded"], to=low))
            nodes.append(helper.make_node("Cast", [f"{name}__rounded"], [name], to=TensorProto.FLOAT))
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value that shape inference can tell, weights included."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output, *inferred.input)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in LOW:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
