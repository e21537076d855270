"""The fp32 graph that rounds: values of NumPy's and ml_dtypes' own rounding, and of the reference evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from onnx import helper, numpy_helper

from export.onnx.rounded import rounded, value_types
from export.precision.half import to_half
from tests.export.graphs import Floats, images, residual_net, save
from tests.export.lowered import evaluate


def run(model: onnx.ModelProto, x: Floats) -> Floats:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Floats = session.run(None, {"input": x})[0]
    return result


def product_net(path: Path) -> Path:
    """The flat image times w plus b: two roundings of the result, one of each operand."""
    drawn = np.random.default_rng(3)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "b"], ["logits"], name="bias"),
    ]
    weights = {
        "w": drawn.standard_normal((192, 5)).astype(np.float32),
        "b": drawn.standard_normal(5).astype(np.float32),
    }
    return save(path, nodes, weights)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", np.float16), ("bf16", bfloat16)])
def test_each_result_is_rounded_once(tmp_path: Path, precision: str, kind: type) -> None:
    source = product_net(tmp_path / "net.onnx")
    model = onnx.load(str(source))
    w, b = (numpy_helper.to_array(tensor).astype(kind).astype(np.float32) for tensor in model.graph.initializer)
    low = to_half(model, "fp16" if precision == "fp16" else "bf16", (), source)
    x = images(6)
    flat = x.reshape(6, -1).astype(kind).astype(np.float32)
    product = (flat.astype(np.float64) @ w.astype(np.float64)).astype(kind).astype(np.float32)
    expected = (product + b).astype(kind).astype(np.float32)
    told = run(rounded(low), x)
    step = {"fp16": 2**-10, "bf16": 2**-7}[precision]
    np.testing.assert_allclose(told, expected, rtol=0, atol=step * np.abs(expected).max())
    assert np.mean(told == expected) > 0.9  # the order of summation turns a rounding now and then
    assert not np.array_equal(told, run(model, x))


def test_overflow_becomes_infinite(tmp_path: Path) -> None:
    source = product_net(tmp_path / "net.onnx")
    low = to_half(onnx.load(str(source)), "fp16", (), source)
    told = run(rounded(low), images(2) * 1e4)
    assert np.isinf(told).any()
    assert np.isfinite(run(onnx.load(str(source)), images(2) * 1e4)).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_agrees_with_the_reference_evaluator(tmp_path: Path, precision: str) -> None:
    source = residual_net(tmp_path / "net.onnx")
    low = to_half(onnx.load(str(source)), "fp16" if precision == "fp16" else "bf16", (), source)
    onnx.save(low, str(tmp_path / "low.onnx"))
    x = images(2)
    exact, reference, told = evaluate(source, x), evaluate(tmp_path / "low.onnx", x), run(rounded(low), x)
    last_place = {"fp16": 2**-10, "bf16": 2**-7}[precision] * 2.0  # of sums around 2, before the bias
    assert np.abs(told - reference).max() <= 1.5 * last_place
    assert 0 < np.abs(told - exact).max() < {"fp16": 2e-3, "bf16": 2e-2}[precision]


def test_the_interface_and_the_given_graph_stay(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    low = to_half(onnx.load(str(source)), "bf16", (), source)
    before = low.SerializeToString()
    plain = rounded(low)
    onnx.checker.check_model(plain, full_check=True)
    assert low.SerializeToString() == before
    assert {value.name for value in (*plain.graph.input, *plain.graph.output)} == {"input", "logits"}
    assert onnx.TensorProto.BFLOAT16 not in {tensor.data_type for tensor in plain.graph.initializer}
    assert value_types(low)["layer1.weight"] == onnx.TensorProto.BFLOAT16
