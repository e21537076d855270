"""fp16 and bf16 graphs: in that type indeed, and what their arithmetic gives, by ONNX's reference and by torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from ml_dtypes import bfloat16
from onnx import helper, numpy_helper

from export.precision.half import peaks, to_half, too_large
from export.precision.lower import Precision
from runtime.errors import UserError
from tests.export.graphs import Floats, conv_net, images, residual_net, save
from tests.export.lowered import evaluate, lower, run

TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_and_arithmetic_are_low_between_fp32_ends(tmp_path: Path, precision: Precision) -> None:
    made = lower(conv_net(tmp_path / "net.onnx"), tmp_path / "low.onnx", precision)
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {weights[name] for name in ("w1", "w2", "w3", "b3")} == {TYPES[precision]}
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT]
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == made.conversions == 2
    assert (made.nodes_low, made.nodes_fp32, made.layers) == (6, 0, 3)
    assert made.opset == {"fp16": 18, "bf16": 22}[precision]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [(item.key, item.value) for item in model.metadata_props] == [("plan", "abc")]


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 1e-6, 5e-3), ("bf16", 1e-4, 5e-2)])
def test_values_by_the_reference_evaluator(tmp_path: Path, precision: Precision, least: float, most: float) -> None:
    """fp16 has 11 bits, bf16 8: 5e-4 and 4e-3 of values around 1, over three layers."""
    source = residual_net(tmp_path / "net.onnx")
    made = lower(source, tmp_path / "low.onnx", precision)
    x = images(2)
    full, low = evaluate(source, x), evaluate(made.path, x)
    assert low.dtype == np.float32
    assert least < np.abs(full - low).max() < most
    assert least < made.max_abs_diff < most


def test_values_by_torch_in_bfloat16(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    made = lower(source, tmp_path / "low.onnx", "bf16")
    w = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in onnx.load(str(source)).graph.initializer}
    low = {name: value.bfloat16() for name, value in w.items() if name != "axes"}
    x = torch.tensor(images(4))
    y = F.relu(F.conv2d(x.bfloat16(), low["w1"], padding=1))
    y = F.relu(F.conv2d(y, low["w2"], padding=1)).mean((2, 3))
    logits = F.linear(y, low["w3"], low["b3"]).float().numpy()
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(made.path)).graph.initializer}
    assert stored["w1"].dtype == bfloat16
    np.testing.assert_array_equal(stored["w1"].astype(np.float32), low["w1"].float().numpy())
    worst = np.abs(logits - run(source, images(4))).max()
    assert worst / 3 < made.max_abs_diff < worst * 3  # two summation orders, one rounding


def test_bf16_holds_weights_that_fp16_does_not(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx", scale=1e6)
    made = lower(source, tmp_path / "low.onnx", "bf16")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(made.path)).graph.initializer}
    assert np.abs(stored["w1"].astype(np.float32)).max() > 65504
    assert (made.layers, made.kept) == (3, ())
    assert list(too_large(onnx.load(str(source)))) == ["w1"]


def test_operators_without_bfloat16_stay_in_fp32(tmp_path: Path) -> None:
    """Operator set 22 has fp16 but no bfloat16 for Shrink; its schema is the only place that says so."""
    allowed = onnx.defs.get_schema("Shrink", 22).type_constraints[0].allowed_type_strs
    assert "tensor(float16)" in allowed and "tensor(bfloat16)" not in allowed
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["scores"], name="product"),
        helper.make_node("Shrink", ["scores"], ["logits"], name="shrink", lambd=0.5),
    ]
    source = save(tmp_path / "net.onnx", nodes, {"w": np.ones((192, 5), np.float32)})
    made = lower(source, tmp_path / "low.onnx", "bf16")
    assert (made.layers, made.nodes_low, made.nodes_fp32) == (1, 2, 1)
    assert lower(source, tmp_path / "half.onnx", "fp16").nodes_fp32 == 0


def test_kept_nodes_read_and_write_fp32(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    model = to_half(onnx.load(str(source)), "fp16", ["conv2"], source)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert (types["w1"], types["w3"]) == (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT16)
    assert types["w2"] == onnx.TensorProto.FLOAT
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 4


def test_truncation_by_a_cast_to_integers_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["scores"], name="product"),
        helper.make_node("Cast", ["scores"], ["whole"], to=onnx.TensorProto.INT32, name="down"),
        helper.make_node("Cast", ["whole"], ["float"], to=onnx.TensorProto.FLOAT, name="up"),
        helper.make_node("Mul", ["float", "one"], ["logits"], name="once"),
    ]
    source = save(tmp_path / "net.onnx", nodes, {"w": np.ones((192, 5), np.float32), "one": np.ones(1, np.float32)})
    model = to_half(onnx.load(str(source)), "fp16", ["down", "up", "once"], source)
    onnx.save(model, str(tmp_path / "low.onnx"))
    told = run(tmp_path / "low.onnx", images(3))
    np.testing.assert_array_equal(told, np.round(told))
    assert np.abs(told).max() > 1


def test_peaks_are_the_largest_magnitudes(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    x: Floats = images(3)
    told = peaks(onnx.load(str(source)), x)
    assert set(told) == {"c1", "r1", "c2", "r2", "m", "logits"}
    assert told["logits"] == pytest.approx(np.abs(run(source, x)).max())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_listed_among_the_inputs_are_cast_too(tmp_path: Path, precision: Precision) -> None:
    source = conv_net(tmp_path / "net.onnx")
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    onnx.save(model, str(source))
    made = lower(source, tmp_path / "low.onnx", precision)
    assert made.conversions == 2
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(str(made.path)).graph.initializer}
    assert weights["w1"] == TYPES[precision]


def test_a_constant_node_beyond_fp16_stays_in_fp32(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.full((192, 5), -7e4, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("Flatten", ["input"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["scores"], name="product"),
        helper.make_node("Mul", ["scores", "small"], ["few"], name="scale"),
        helper.make_node("MatMul", ["few", "square"], ["logits"], name="square"),
    ]
    weights = {"small": np.array(1e-6, np.float32), "square": np.eye(5, dtype=np.float32)}
    source = save(tmp_path / "net.onnx", nodes, weights)
    made = lower(source, tmp_path / "low.onnx", "fp16")
    assert {kept.layer for kept in made.kept} >= {"product"}
    assert made.layers == 1 and made.max_abs_diff < 0.01
    with pytest.raises(UserError, match=r"'w' in .* holds 70000; weights and activations up to 65504"):
        lower(source, tmp_path / "refused.onnx", "fp16", keep_fp32=())
    assert not (tmp_path / "refused.onnx").exists()
