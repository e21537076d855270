"""The fp16 graph: in fp16 indeed, close to fp32, and refused where fp16 cannot hold the values."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.onnx_from_torch import OnnxGraph
from export.precision import cast
from runtime.errors import UserError
from tests.export.conftest import Residual
from tests.export.graphs import Floats, conv_net, images, save


def evaluate(path: Path, x: Floats) -> Floats:
    """The first output in NumPy, every intermediate value rounded to its own type."""
    outputs: Any = ReferenceEvaluator(str(path)).run(None, {"input": x})
    return np.asarray(outputs[0])


def test_weights_and_arithmetic_are_fp16_between_fp32_ends(tmp_path: Path) -> None:
    made = cast(conv_net(tmp_path / "net.onnx"), tmp_path / "half.onnx", precision="fp16", samples=images(4))
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {weights[name] for name in ("w1", "w2", "w3", "b3")} == {onnx.TensorProto.FLOAT16}
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT]
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == made.casts == 2
    assert (made.nodes_fp16, made.nodes_fp32) == (6, 0)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [(item.key, item.value) for item in model.metadata_props] == [("plan", "abc")]


def test_values_in_true_half_precision(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    made = cast(source, tmp_path / "half.onnx", precision="fp16", samples=images(4))
    x = images(3)
    full, half = evaluate(source, x), evaluate(made.path, x)
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 5e-3  # fp16 has 11 bits: 5e-4 of values around 1, over three layers
    assert 0 < made.max_abs_diff < 5e-3


def test_a_network_exported_from_torch(exported: tuple[Residual, OnnxGraph], tmp_path: Path) -> None:
    _, graph = exported
    made = cast(graph.path, tmp_path / "half.onnx", precision="fp16", samples=images(8))
    assert (made.nodes_fp16, made.nodes_fp32) == (graph.nodes, 0)
    assert made.bytes == made.path.stat().st_size
    saved = graph.bytes - made.bytes
    assert saved == pytest.approx(2 * 3233, rel=0.25)  # 3,233 weights at two bytes less
    assert 0 < made.largest < 100


def test_a_fixed_batch(tmp_path: Path) -> None:
    made = cast(conv_net(tmp_path / "net.onnx", batch=2), tmp_path / "half.onnx", precision="fp16", samples=images(3))
    assert made.nodes_fp16 == 6
    assert made.max_abs_diff < 5e-3


def test_a_weight_beyond_fp16_is_refused(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx", scale=1e6)
    with pytest.raises(UserError, match=r"'w1' in .*net\.onnx holds .*; values up to 65504"):
        cast(source, tmp_path / "half.onnx", precision="fp16", samples=images(4))
    assert not (tmp_path / "half.onnx").exists()


def test_a_constant_node_beyond_fp16_is_refused(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.full((192, 5), -7e4, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    source = save(tmp_path / "net.onnx", nodes, {})
    with pytest.raises(UserError, match=r"'w' in .* holds 70000; values up to 65504"):
        cast(source, tmp_path / "half.onnx", precision="fp16", samples=images(4))
    assert not (tmp_path / "half.onnx").exists()


def test_an_activation_beyond_fp16_is_refused(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx", scale=1e4)  # weights up to 1e4, convolutions of them beyond 65504
    weights = numpy_helper.to_array(onnx.load(str(source)).graph.initializer[0])
    assert np.abs(weights).max() < 65504
    with pytest.raises(UserError, match=r"'(c1|r1|c2)' in .* reaches .* on the samples"):
        cast(source, tmp_path / "half.onnx", precision="fp16", samples=images(100) * 10)
    assert not (tmp_path / "half.onnx").exists()


def test_nothing_to_cast_is_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["m"], keepdims=0),
        helper.make_node("Relu", ["m"], ["logits"]),
    ]
    source = save(tmp_path / "net.onnx", nodes, {"axes": np.array([2, 3], np.int64)}, classes=3)
    with pytest.raises(UserError, match=r"no convolution or matrix product of .* ended in fp16"):
        cast(source, tmp_path / "half.onnx", precision="fp16", samples=images(4))
    assert not (tmp_path / "half.onnx").exists()


def test_weights_listed_among_the_inputs_are_cast_too(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    onnx.save(model, str(source))
    made = cast(source, tmp_path / "half.onnx", precision="fp16", samples=images(4))
    assert made.casts == 2
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(str(made.path)).graph.initializer}
    assert weights["w1"] == onnx.TensorProto.FLOAT16


def test_a_foreign_detector(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "weights" / "linzaer_version-slim-320_simplified.onnx"
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 240, 320)).astype(np.float32)
    made = cast(source, tmp_path / "half.onnx", precision="fp16", samples=x)
    assert made.nodes_fp32 == 0
    assert made.nodes_fp16 == 95
    assert made.bytes / source.stat().st_size == pytest.approx(0.5, abs=0.03)
