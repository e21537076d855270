"""The ranking of layers, and the search for the fewest that must be kept."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.precision import sensitivity
from export.precision.sensitivity import fewest, rank, relative_error


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 53])
def test_fewest_finds_every_threshold(most: int) -> None:
    for needed in range(1, most + 3):
        tried: list[int] = []

        def holds(count: int, needed: int = needed, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count >= needed

        assert fewest(most, holds) == (needed if needed <= most else None)
        assert len(tried) <= 2 * np.log2(most) + 3
        assert max(tried) <= most


def test_nothing_to_keep_is_none() -> None:
    assert fewest(0, lambda count: True) is None
    assert fewest(5, lambda count: False) is None


def test_relative_error() -> None:
    a, b = np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    assert relative_error([[a]], [[b]]) == pytest.approx(0.01)  # 0.25 of 25
    assert relative_error([[a], [a]], [[b], [a]]) == pytest.approx(0.005)
    assert relative_error([[a]], [[np.array([3.0, np.inf], np.float32)]]) == float("inf")
    zero = np.zeros(2, np.float32)
    assert (relative_error([[zero]], [[zero]]), relative_error([[zero]], [[a]])) == (0.0, float("inf"))


def scaled(keep: Collection[str]) -> onnx.ModelProto:
    """y = x * (1 + the sum of the errors of the layers not kept)."""
    errors = {"small": 0.01, "large": 0.1, "none": 0.0}
    factor = np.float32(1 + sum(error for layer, error in errors.items() if layer not in keep))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array(factor), "factor")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_each_layer_alone_is_lowered() -> None:
    x = np.array([1.0, -2.0], np.float32)
    ranked = rank(["none", "small", "large"], scaled, [[x], [2 * x]], [{"x": x}, {"x": 2 * x}])
    assert [item.layer for item in ranked] == ["large", "small", "none"]
    assert [item.error for item in ranked] == pytest.approx([0.01, 0.0001, 0.0], rel=1e-3)


def test_layers_alike_keep_their_order() -> None:
    x = np.array([1.0], np.float32)
    ranked = rank(["b", "a"], lambda keep: scaled(("large", "small")), [[x]], [{"x": x}])
    assert [item.layer for item in ranked] == ["b", "a"]
    assert {item.error for item in ranked} == {0.0}
    assert sensitivity.LayerError("a", 0.0) in ranked
