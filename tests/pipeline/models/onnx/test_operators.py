"""Each operator in torch against ONNX Runtime, at another batch size than the one it was read at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from pipeline.models.onnx import network_from_model
from runtime.errors import UserError
from tests.pipeline.models.onnx.graphs import Array, answers, graph, normal

FLOAT, INT = np.float32, np.int64
IMAGE = ("N", 4, 9, 9)
# (operator, opset, further inputs, attributes, shape of the input)
CASES: dict[str, tuple[str, int, list[Array], dict[str, Any], tuple[Any, ...]]] = {
    **{op: (op, 17, [], {}, IMAGE) for op in (
        "Relu Sigmoid Tanh Exp Abs Neg Erf Floor Ceil Reciprocal Sin Cos Sign Round Softsign HardSwish HardSigmoid "
        "LeakyRelu Elu Celu Selu Softplus ThresholdedRelu Identity GlobalAveragePool GlobalMaxPool Flatten Softmax "
        "LogSoftmax Dropout Transpose ReduceMean ReduceMax ReduceMin ReduceL2 Shape").split() if op != "Shape"},
    "Mish": ("Mish", 18, [], {}, IMAGE),
    "Gelu": ("Gelu", 20, [], {}, IMAGE),
    "Gelu tanh": ("Gelu", 20, [], {"approximate": "tanh"}, IMAGE),
    "HardSigmoid 1/6": ("HardSigmoid", 17, [], {"alpha": 1 / 6}, IMAGE),
    "Clip 6": ("Clip", 9, [], {"min": 0.0, "max": 1.0}, IMAGE),
    "Clip 11": ("Clip", 11, [np.array(0.0, FLOAT), np.array(0.5, FLOAT)], {}, IMAGE),
    "Pow": ("Pow", 13, [np.array(2.0, FLOAT)], {}, IMAGE),
    "Div": ("Div", 14, [normal(4, 1, 1) + 3], {}, IMAGE),
    "Sub": ("Sub", 14, [np.array([1.5], FLOAT)], {}, IMAGE),
    "Max": ("Max", 13, [normal(4, 1, 1)], {}, IMAGE),
    "Sum": ("Sum", 13, [normal(4, 1, 1), normal(9)], {}, IMAGE),
    "PRelu": ("PRelu", 16, [normal(4, 1, 1)], {}, IMAGE),
    "PRelu one": ("PRelu", 9, [normal(1)], {}, IMAGE),
    "Conv": ("Conv", 11, [normal(6, 2, 3, 3), normal(6)], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}, IMAGE),
    "Conv uneven": ("Conv", 11, [normal(6, 4, 3, 3)], {"pads": [0, 1, 2, 1], "dilations": [2, 1]}, IMAGE),
    "Conv same": ("Conv", 11, [normal(6, 4, 2, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, IMAGE),
    "Conv lower": ("Conv", 11, [normal(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}, IMAGE),
    "Conv1d": ("Conv", 11, [normal(6, 4, 3)], {}, ("N", 4, 9)),
    "Conv3d": ("Conv", 11, [normal(6, 4, 2, 2, 2)], {}, ("N", 4, 5, 5, 5)),
    "ConvTranspose": ("ConvTranspose", 11, [normal(4, 3, 3, 3), normal(3)],
                      {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, IMAGE),
    "ConvTranspose uneven": ("ConvTranspose", 11, [normal(4, 3, 3, 3)],
                             {"strides": [2, 2], "pads": [0, 1, 1, 0]}, IMAGE),
    "Gemm": ("Gemm", 13, [normal(5, 4), normal(5)], {"transB": 1}, ("N", 4)),
    "Gemm row": ("Gemm", 13, [normal(4, 5), normal(1, 5)], {}, ("N", 4)),
    "Gemm scaled": ("Gemm", 13, [normal(4, 5), normal(5)], {"alpha": 0.5, "beta": 2.0}, ("N", 4)),
    "MatMul": ("MatMul", 13, [normal(9, 5)], {}, IMAGE),
    "MatMul batched": ("MatMul", 13, [normal(4, 9, 5)], {}, IMAGE),
    "BatchNormalization": ("BatchNormalization", 15, [normal(4)] * 3 + [normal(4) ** 2 + 1], {}, IMAGE),
    "InstanceNormalization": ("InstanceNormalization", 6, [normal(4), normal(4)], {}, IMAGE),
    "LayerNormalization": ("LayerNormalization", 17, [normal(9), normal(9)], {}, IMAGE),
    "GroupNormalization": ("GroupNormalization", 21, [normal(4), normal(4)], {"num_groups": 2}, IMAGE),
    "GroupNormalization 18": ("GroupNormalization", 18, [normal(2), normal(2)], {"num_groups": 2}, IMAGE),
    "LRN": ("LRN", 13, [], {"size": 3}, IMAGE),
    "MaxPool": ("MaxPool", 12, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}, IMAGE),
    "MaxPool ceil": ("MaxPool", 12, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, IMAGE),
    "MaxPool dilated": ("MaxPool", 12, [], {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 0, 0, 1]}, IMAGE),
    "AveragePool": ("AveragePool", 11, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, IMAGE),
    "AveragePool counted": ("AveragePool", 11, [],
                            {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1}, IMAGE),
    "AveragePool ceil": ("AveragePool", 19, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, IMAGE),
    "ReduceMean 11": ("ReduceMean", 11, [], {"axes": [2, 3], "keepdims": 0}, IMAGE),
    "ReduceMean 18": ("ReduceMean", 18, [np.array([-1, -2], INT)], {}, IMAGE),
    "ReduceSum": ("ReduceSum", 13, [np.array([1], INT)], {}, IMAGE),
    "Softmax 11": ("Softmax", 11, [], {"axis": 3}, IMAGE),
    "Softmax 11 joint": ("Softmax", 11, [], {"axis": 1}, IMAGE),
    "Reshape": ("Reshape", 14, [np.array([0, 2, -1], INT)], {}, IMAGE),
    "Flatten 2": ("Flatten", 13, [], {"axis": 2}, IMAGE),
    "Squeeze": ("Squeeze", 13, [np.array([1], INT)], {}, ("N", 1, 3)),
    "Unsqueeze": ("Unsqueeze", 13, [np.array([1, -1], INT)], {}, ("N", 3)),
    "Slice": ("Slice", 13, [np.array(n, INT) for n in ([1, -5], [3, 2**62], [1, 2], [1, 2])], {}, IMAGE),
    "Slice 9": ("Slice", 9, [], {"starts": [1], "ends": [3], "axes": [1]}, IMAGE),
    "Gather": ("Gather", 13, [np.array([2, 0, -1], INT)], {"axis": 1}, IMAGE),
    "Gather one": ("Gather", 13, [np.array(1, INT)], {"axis": 2}, IMAGE),
    "Expand": ("Expand", 13, [np.array([1, 4, 3, 2], INT)], {}, ("N", 1, 3, 1)),
    "Tile": ("Tile", 13, [np.array([1, 1, 2, 3], INT)], {}, IMAGE),
    "Pad": ("Pad", 13, [np.array([0, 1, 2, 0, 0, 0, 1, 1], INT), np.array(0.5, FLOAT)], {}, IMAGE),
    "Pad 18": ("Pad", 18,
               [np.array([1, 2], INT), np.array(0.0, FLOAT), np.array([3], INT)], {"mode": "reflect"}, IMAGE),
    "DepthToSpace": ("DepthToSpace", 13, [], {"blocksize": 2, "mode": "CRD"}, IMAGE),
    "DepthToSpace DCR": ("DepthToSpace", 13, [], {"blocksize": 2}, IMAGE),
    "SpaceToDepth": ("SpaceToDepth", 13, [], {"blocksize": 3}, IMAGE),
    "Resize": ("Resize", 13, [np.array([], FLOAT), np.array([1, 1, 2, 2], FLOAT)],
               {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, IMAGE),
    "Resize linear": ("Resize", 13, [np.array([], FLOAT), np.array([1, 1, 2, 2], FLOAT)],
                      {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, IMAGE),
    "Resize sizes": ("Resize", 19, [np.array([], FLOAT), np.array([], FLOAT), np.array([1, 4, 18, 27], INT)],
                     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, ("N", 4, 9, 9)),
    "Resize nearest": ("Resize", 13, [np.array([], FLOAT), np.array([1, 1, 1.5, 1.5], FLOAT)],
                       {"mode": "nearest"}, IMAGE),
}  # fmt: skip


def single(case: str) -> tuple[Any, tuple[int, ...]]:
    op, opset, extra, attributes, shape = CASES[case]
    if case == "Resize sizes":
        shape = (3, *shape[1:])
        extra = [*extra[:2], np.array([3, 4, 18, 27], INT)]
    weights = {f"c{i}": array for i, array in enumerate(extra)}
    node = helper.make_node(op, ["x", *weights], ["y"], **attributes)
    return graph([node], weights, {"x": shape}, ["y"], opset), (3, *shape[1:])


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_what_onnx_runtime_computes(case: str) -> None:
    model, shape = single(case)
    network = network_from_model(model, Path("x.onnx"))
    x = np.abs(normal(*shape)) + 0.5 if case in ("Reciprocal",) else normal(*shape)
    (expected,) = answers(model, {"x": x})
    with torch.no_grad():
        y = network.module(torch.from_numpy(x)).numpy()
    assert y.shape == expected.shape and y.dtype == expected.dtype
    assert np.allclose(y, expected, rtol=1e-5, atol=2e-6)


def test_what_torch_has_not_is_frozen_and_named() -> None:
    frozen = {case: network_from_model(single(case)[0], Path("x.onnx")).frozen for case in ("SpaceToDepth", "Relu")}
    assert frozen["SpaceToDepth"] == {"y": "surgery does not know SpaceToDepth"} and frozen["Relu"] == {}
    model = graph([helper.make_node("Relu", ["x"], ["y"], "one")], {}, {"x": IMAGE}, ["y"])
    model.graph.node[0].op_type, model.graph.node[0].domain = "Strange", "mine"
    with pytest.raises(UserError, match="node one, operator Strange"):
        network_from_model(model, Path("x.onnx"))
