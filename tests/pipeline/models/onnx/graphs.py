"""Small ONNX graphs, and what ONNX Runtime answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Weights = dict[str, Array]


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: Weights,
    inputs: dict[str, Sequence[Any]],
    outputs: Sequence[str],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of float32 inputs of the shapes given; shapes of the outputs are inferred."""
    body = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model)
    for output, typed in zip(model.graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(typed)
    return model


def answers(model: onnx.ModelProto, feeds: Weights) -> list[Array]:
    """ONNX Runtime's outputs, without optimisation of the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_zero_rows(*shape: int, dead: Sequence[int], seed: int = 0) -> Array:
    """Normal numbers; rows `dead` of the first axis are zero."""
    array = normal(*shape, seed=seed)
    array[list(dead)] = 0
    return array
