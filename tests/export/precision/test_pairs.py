"""Pairs of an int8 graph, read and rewritten: their places by hand, their numbers in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.precision.int8 import Calibration, Runtime, quantise, ranges_of
from export.precision.pairs import Pair, Values, levels_of, pairs_of, with_constants, with_values
from tests.export.graphs import Array, images, residual_net
from tests.export.lowered import run


def both(tmp_path: Path, runtime: Runtime = "tensorrt") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The fp32 graph, and the same with pairs."""
    source = residual_net(tmp_path / "net.onnx")
    full, calibration = onnx.load(str(source)), Calibration("minmax", runtime=runtime)
    return full, quantise(full, ranges_of(source, [images(32)], calibration), (), source, calibration)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def shape(model: onnx.ModelProto) -> list[str]:
    """Everything of a graph but the numbers in its constants."""
    nodes = [node.SerializeToString(deterministic=True).hex() for node in model.graph.node]
    return nodes + [f"{t.name} {t.data_type} {list(t.dims)}" for t in model.graph.initializer]


def test_pairs_by_who_reads_them(tmp_path: Path) -> None:
    """Three convolutions, one addition of two values, one product; the values' names are those of the fp32 graph."""
    pairs = pairs_of(*both(tmp_path))
    assert [(pair.node, pair.index, pair.value) for pair in pairs] == [
        ("conv1", 0, "input"), ("conv1", 1, "layer1.weight"), ("conv2", 0, "p1"), ("conv2", 1, "layer2.weight"),
        ("conv3", 0, "r2"), ("conv3", 1, "layer3.weight"), ("add", 0, "c3"), ("add", 1, "p1"),
        ("head", 0, "m"), ("head", 1, "head.weight"),
    ]  # fmt: skip
    weights = [pair for pair in pairs if pair.levels is not None]
    assert [(pair.value, pair.axis, pair.low, pair.high) for pair in weights] == [
        (name, 0, -127, 127) for name in ("layer1.weight", "layer2.weight", "layer3.weight", "head.weight")
    ]
    assert {(pair.zero_point, pair.low, pair.high, pair.axis) for pair in pairs if pair.levels is None} == {
        (0, -128, 127, None)
    }


def test_the_form_of_onnx_runtime_has_zero_points_and_shared_scales(tmp_path: Path) -> None:
    pairs = {(pair.node, pair.value): pair for pair in pairs_of(*both(tmp_path, "onnxruntime"))}
    assert pairs["pool", "r1"].scale == pairs["conv2", "p1"].scale  # a pool only passes values through
    assert (pairs["conv3", "r2"].zero_point, pairs["conv3", "r2"].low, pairs["conv3", "r2"].high) == (0, 0, 255)
    assert 0 < pairs["conv1", "input"].zero_point < 255
    assert not [pair for pair in pairs.values() if pair.value.endswith("bias")]


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_other_values_leave_the_graph_as_it_is(tmp_path: Path, runtime: Runtime) -> None:
    full, low = both(tmp_path, runtime)
    before = low.SerializeToString(deterministic=True)
    weight = constants(full)["layer2.weight"] * 0.5
    after = with_values(full, low, Values({"layer2.weight": weight}, {"layer2.weight_scale": np.full(8, 0.01)}))
    assert shape(after) == shape(low) and low.SerializeToString(deterministic=True) == before
    own = constants(after)
    np.testing.assert_array_equal(own["layer2.weight_quantized"], np.clip(np.rint(weight / 0.01), -127, 127))
    np.testing.assert_array_equal(own["layer2.weight_scale"], np.full(8, np.float32(0.01)))
    changed = {name for name, array in constants(low).items() if not np.array_equal(array, own[name])}
    assert changed == {"layer2.weight_quantized", "layer2.weight_scale"}
    onnx.checker.check_model(after, full_check=True)


def test_a_bias_in_int32_has_the_scale_of_the_products(tmp_path: Path) -> None:
    full, low = both(tmp_path, "onnxruntime")
    scales = {"m_scale": np.array(0.02), "head.weight_scale": np.array([0.01, 0.02, 0.03, 0.04, 0.05])}
    bias = np.array([1.0, -1.0, 0.5, 0.25, 2.0], np.float32)
    own = constants(with_values(full, low, Values({"head.bias": bias}, scales)))
    np.testing.assert_allclose(own["head.bias_quantized_scale"], 0.02 * scales["head.weight_scale"], rtol=1e-6)
    np.testing.assert_array_equal(own["head.bias_quantized"], [5000, -2500, 833, 312, 2000])  # 312.5 to even
    assert own["head.bias_quantized"].dtype == np.int32


def test_weights_of_the_fp32_graph(tmp_path: Path) -> None:
    full, _ = both(tmp_path)
    bias = np.arange(5, dtype=np.float32)
    after = with_constants(full, Values({"head.bias": bias}, {}))
    onnx.save(after, str(tmp_path / "other.onnx"))
    moved = run(tmp_path / "other.onnx", images(4)) - run(tmp_path / "net.onnx", images(4))
    np.testing.assert_allclose(moved, np.tile(bias - constants(full)["head.bias"], (4, 1)), atol=1e-5)
    assert shape(after) == shape(full)


def test_levels_along_another_axis() -> None:
    pair = Pair("product", 1, "w", "w_scale", 0, -127, 127, 1, "w_quantized")
    weight = np.array([[1.0, 1.0], [2.0, -300.0]], np.float32)
    np.testing.assert_array_equal(levels_of(weight, np.array([0.5, 1.0]), pair), [[2, 1], [4, -127]])
    whole = Pair("product", 1, "w", "w_scale", 0, -127, 127, None, "w_quantized")
    np.testing.assert_array_equal(levels_of(weight, np.array(2.0), whole), [[0, 0], [1, -127]])  # half to even
