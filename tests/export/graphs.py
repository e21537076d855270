"""Small ONNX graphs written by hand, so that a test knows every node and weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
Array = NDArray[Any]


def images(count: int, channels: int = 3, side: int = 8) -> Floats:
    """(count, channels, side, side) float32, the same on every call."""
    return np.random.default_rng(7).standard_normal((count, channels, side, side)).astype(np.float32)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    *,
    batch: int | str = "batch",
    shape: tuple[int | str, ...] = (3, 8, 8),
    classes: int = 5,
) -> Path:
    """Writes a graph with float32 input `input` (batch, *shape) and output `logits` (batch, classes), opset 18."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.add(key="plan", value="abc")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def conv_net(
    path: Path, *, width: int = 8, scale: float = 1.0, batch: int | str = "batch", side: int | str = 8, classes: int = 5
) -> Path:
    """Conv 3x3 (3 -> width), Relu, Conv 3x3 (width -> width), Relu, mean, Gemm: 6 nodes, 3 of them products."""
    drawn = np.random.default_rng(0)

    def weight(*shape: int) -> Floats:
        values: Floats = (drawn.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return values

    weights = {
        "w1": weight(width, 3, 3, 3) * np.float32(scale),
        "w2": weight(width, width, 3, 3),
        "w3": weight(classes, width),
        "b3": weight(classes, 1)[:, 0],
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], pads=[1, 1, 1, 1], kernel_shape=[3, 3], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], kernel_shape=[3, 3], name="conv2"),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("ReduceMean", ["r2", "axes"], ["m"], keepdims=0, name="mean"),
        helper.make_node("Gemm", ["m", "w3", "b3"], ["logits"], transB=1, name="fc"),
    ]
    axes = {"axes": np.array([2, 3], np.int64)}
    return save(path, nodes, {**weights, **axes}, batch=batch, shape=(3, side, side), classes=classes)


def residual_net(path: Path, *, loud: float = 1.0, batch: int | str = "batch") -> Path:
    """Conv, Relu, MaxPool, Conv, Relu, Conv + the pooled values, Relu, mean, Gemm: 4 layers, one residual addition.

    `loud` scales one of the eight channels of conv2's weight, and conv3 takes that scale out again: the function stays,
    but one scale for all of r2 cannot hold both the loud channel and the others. The bias makes the classes about as
    frequent as each other on `images`.
    """
    drawn = np.random.default_rng(1)

    def weight(*shape: int) -> Floats:
        values: Floats = (drawn.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return values

    weights: dict[str, Array] = {
        "layer1.weight": weight(8, 3, 3, 3),
        "layer2.weight": weight(8, 8, 3, 3),
        "layer3.weight": weight(8, 8, 1, 1),
        "head.weight": weight(5, 8),
        "head.bias": np.array([-2.0456, -0.8296, -0.4958, -0.975, -0.8605], np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    weights["layer2.weight"][0] *= loud
    weights["layer3.weight"][:, 0] /= loud
    conv: dict[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["input", "layer1.weight"], ["c1"], name="conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        helper.make_node("Conv", ["p1", "layer2.weight"], ["c2"], name="conv2", **conv),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["r2", "layer3.weight"], ["c3"], kernel_shape=[1, 1], name="conv3"),
        helper.make_node("Add", ["c3", "p1"], ["a3"], name="add"),
        helper.make_node("Relu", ["a3"], ["r3"], name="relu3"),
        helper.make_node("ReduceMean", ["r3", "axes"], ["m"], keepdims=0, name="mean"),
        helper.make_node("Gemm", ["m", "head.weight", "head.bias"], ["logits"], transB=1, name="head"),
    ]
    return save(path, nodes, weights, batch=batch)
