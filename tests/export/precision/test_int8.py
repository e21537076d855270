"""int8 graphs: where the pairs stand, what their scales are, and values worked out in NumPy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from export.precision.int8 import Calibration, layers_of, quantise, ranges_of, residual_adds
from runtime.errors import UserError
from tests.export.graphs import Array, Floats, images, residual_net, save
from tests.export.lowered import lower, run

MINMAX = Calibration("minmax")
CPU = Path("/proc/cpuinfo")
# Without these instructions x86 adds two products of bytes in 16 bits, which saturate: sums are not those worked out.
whole_sums = pytest.mark.skipif(
    CPU.is_file() and "avx2" in CPU.read_text() and "vnni" not in CPU.read_text(),
    reason="int8 kernels of x86 without VNNI saturate (docs/precision.md)",
)


def quantised(tmp_path: Path, keep: tuple[str, ...] = (), calibration: Calibration = MINMAX) -> onnx.ModelProto:
    source = residual_net(tmp_path / "net.onnx")
    return quantise(onnx.load(str(source)), ranges_of(source, [images(32)], calibration), keep, source, calibration)


def reads(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Node -> its inputs: `q(x)` for a value behind a pair, `w(x)` for a weight behind a DequantizeLinear, else x."""
    made = {name: node for node in model.graph.node for name in node.output}

    def shown(name: str) -> str:
        dequantise = made.get(name)
        if dequantise is None or dequantise.op_type != "DequantizeLinear":
            return name
        pair = made.get(dequantise.input[0])
        return f"q({pair.input[0]})" if pair else f"w({dequantise.input[0].removesuffix('_quantized')})"

    skipped = ("QuantizeLinear", "DequantizeLinear")
    return {node.name: [shown(n) for n in node.input] for node in model.graph.node if node.op_type not in skipped}


def test_pairs_stand_where_tensorrt_wants_them(tmp_path: Path) -> None:
    """At the inputs of layers and both inputs of the addition; nowhere between a layer and its ReLU; biases in fp32."""
    told = reads(quantised(tmp_path))
    assert told["conv1"] == ["q(input)", "w(layer1.weight)"]
    assert told["conv2"] == ["q(p1)", "w(layer2.weight)"]
    assert told["conv3"] == ["q(r2)", "w(layer3.weight)"]
    assert told["add"] == ["q(c3)", "q(p1)"]
    assert told["head"] == ["q(m)", "w(head.weight)", "head.bias"]
    assert (told["relu1"], told["pool"], told["relu2"], told["mean"]) == (["c1"], ["r1"], ["c2"], ["r3", "axes"])


def test_scales_are_symmetric_and_per_output_channel(tmp_path: Path) -> None:
    model = quantised(tmp_path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    source = onnx.load(str(tmp_path / "net.onnx"))
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = values[node.input[1]], values[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
        assert scale.shape == ((8,) if "layer" in node.input[0] else (5,) if "head" in node.input[0] else ())
    for tensor in source.graph.initializer:
        if tensor.name.endswith(".weight"):
            exact = numpy_helper.to_array(tensor)
            peaks = np.abs(exact.reshape(len(exact), -1)).max(1)
            np.testing.assert_allclose(values[f"{tensor.name}_scale"], peaks / 127, rtol=0.01)
            assert values[f"{tensor.name}_quantized"].dtype == np.int8
    (pair,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "input")
    np.testing.assert_allclose(values[pair.input[1]], np.abs(images(32)).max() / 127, rtol=0.01)


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_one_scale_for_a_whole_weight(tmp_path: Path, runtime: Any) -> None:
    """The scale of its largest weight, so the other channels get fewer levels than 127."""
    model = quantised(tmp_path, calibration=Calibration("minmax", runtime=runtime, weights="tensor"))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [t for t in onnx.load(str(tmp_path / "net.onnx")).graph.initializer if t.name.endswith(".weight")]
    assert len(weights) == 4
    for tensor in weights:
        exact = numpy_helper.to_array(tensor)
        scale, levels = values[f"{tensor.name}_scale"], values[f"{tensor.name}_quantized"]
        assert scale.shape == () and scale == pytest.approx(np.abs(exact).max() / 127, rel=0.01)
        np.testing.assert_allclose(levels * scale, exact, atol=0.51 * float(scale))


def test_a_kept_layer_reads_what_it_read_before(tmp_path: Path) -> None:
    told = reads(quantised(tmp_path, keep=("conv2", "conv1")))
    assert told["conv2"] == ["p1", "layer2.weight"]
    assert told["conv1"] == ["input", "layer1.weight"]
    assert told["add"] == ["q(c3)", "q(p1)"]
    model = quantised(tmp_path, keep=("conv1", "conv2", "conv3", "head"))
    assert reads(model) == reads(onnx.load(str(tmp_path / "net.onnx")))
    assert Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] == 0
    assert {t.name for t in model.graph.initializer} == {
        t.name for t in onnx.load(str(tmp_path / "net.onnx")).graph.initializer
    }


def one_product(tmp_path: Path) -> tuple[Path, Floats, Floats]:
    """A graph of one product, its weight, and images."""
    w = np.random.default_rng(5).standard_normal((192, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["logits"], name="product"),
    ]
    return save(tmp_path / "net.onnx", nodes, {"w": w}), w, images(16)


@whole_sums
def test_values_of_one_product_by_hand(tmp_path: Path) -> None:
    """x ~ sx * round(x / sx), w ~ sw * round(w / sw) for each of its five columns; the sums in float64."""
    source, w, x = one_product(tmp_path)
    made = lower(source, tmp_path / "low.onnx", "int8", x)

    def fake(values: Array, scale: Array) -> Array:
        return np.asarray(np.clip(np.rint(values / scale), -128, 127) * scale)

    flat = x.reshape(16, -1).astype(np.float64)
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in onnx.load(str(made.path)).graph.initializer}
    scale = {name.removesuffix("_scale"): value for name, value in values.items() if name.endswith("_scale")}
    assert set(scale) == {"flat", "w"}
    expected = fake(flat, scale["flat"]) @ fake(w.astype(np.float64), scale["w"])
    np.testing.assert_allclose(run(made.path, x), expected, atol=1e-4)
    assert np.abs(expected - flat @ w).max() > 0.01
    assert (made.layers, made.nodes_low, made.conversions) == (1, 1, 1)


@pytest.mark.parametrize(
    ("calibration", "covered"),
    [(Calibration("minmax"), 4.06), (Calibration("percentile", 90.0), 1.645), (Calibration("percentile"), 4.06)],
    ids=["minmax", "percentile 90", "percentile 99.99"],
)
def test_ranges_of_the_normal_distribution(tmp_path: Path, calibration: Calibration, covered: float) -> None:
    """90 % of it lie within 1.645; the largest of 6,144 is 4.06 here, and 99.99 % leave none of so few out."""
    source = residual_net(tmp_path / "net.onnx")
    assert np.abs(images(32)).max() == pytest.approx(4.06, abs=0.01)
    ends = np.array(ranges_of(source, [images(32)], calibration).data["input"].range_value, np.float64)
    assert ends.size == 2
    assert np.abs(ends).max() == pytest.approx(covered, rel=0.03)


def test_entropy_stays_within_the_largest(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    x = images(64)
    x[0, 0, 0, 0] = 30.0  # one value far from all others
    cut, whole = (
        float(np.abs(np.array(ranges_of(source, [x], calibration).data["input"].range_value, np.float64)).max())
        for calibration in (Calibration("entropy"), Calibration("minmax"))
    )
    assert whole == pytest.approx(30.0)
    assert 2.0 < cut <= whole


def test_batches_in_pieces_give_the_same_ranges(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    x: Floats = images(10)
    for method in ("minmax", "percentile"):
        whole = ranges_of(source, [x], Calibration(method))
        parts = ranges_of(source, [x[:3], x[3:]], Calibration(method))
        assert set(whole.data) == set(parts.data) >= {"input", "p1", "c3", "r2", "m"}
        for name, item in whole.data.items():
            np.testing.assert_allclose(item.range_value[1], parts.data[name].range_value[1], rtol=0.05)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str) -> None:
    """Standard output ends with one JSON document, and has nothing else."""
    lower(residual_net(tmp_path / "net.onnx"), tmp_path / "low.onnx", "int8", calibration=Calibration(method))  # type: ignore[arg-type]
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == ""


def test_no_images_is_a_clear_error(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    with pytest.raises(UserError, match="no images for calibration; at least one training image"):
        ranges_of(source, [], Calibration())
    with pytest.raises(UserError, match=r"net\.onnx cannot be calibrated: .*Got invalid dimensions"):
        ranges_of(source, [images(2, side=9)], Calibration("minmax"))


def test_layers_are_those_with_weights(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "net.onnx")))
    assert layers_of(model) == ["conv1", "conv2", "conv3", "head"]
    assert residual_adds(model) == ["add"]


def test_metadata_and_the_given_graph_stay(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    model = onnx.load(str(source))
    before = model.SerializeToString()
    made = quantise(model, ranges_of(source, [images(4)], MINMAX), (), source, MINMAX)
    assert model.SerializeToString() == before
    assert [(item.key, item.value) for item in made.metadata_props] == [("plan", "abc")]
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


OWN = Calibration("minmax", runtime="onnxruntime")


def for_onnxruntime(tmp_path: Path, keep: tuple[str, ...] = ()) -> onnx.ModelProto:
    source = residual_net(tmp_path / "net.onnx")
    return quantise(onnx.load(str(source)), ranges_of(source, [images(32)], OWN), keep, source, OWN)


def optimised(model: onnx.ModelProto, path: Path) -> Counter[str]:
    """Operators of the graph as ONNX Runtime's CPU provider runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def test_its_own_form_is_what_onnx_runtime_computes_in_int8(tmp_path: Path) -> None:
    own = optimised(for_onnxruntime(tmp_path), tmp_path / "own.onnx")
    assert (own["QLinearConv"], own["QLinearAdd"], own["QGemm"]) == (3, 1, 1)
    assert not own.keys() & {"Conv", "Add", "Gemm", "Relu"}
    other = optimised(quantised(tmp_path), tmp_path / "other.onnx")
    assert (other["QLinearConv"], other["QGemm"]) == (1, 0)  # a ReLU stands behind the other two


def test_its_own_form_has_uint8_that_takes_the_relu_in(tmp_path: Path) -> None:
    model = for_onnxruntime(tmp_path)
    told = reads(model)
    assert not [name for name in told if name.startswith("relu")]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.op_type == "QuantizeLinear"):
        zero = values[node.input[2]]
        assert zero.dtype == np.uint8
        if node.input[0] in ("r1", "r2", "r3"):
            assert zero == 0
    assert values["layer1.bias_quantized"].dtype == np.int32 if "layer1.bias_quantized" in values else True
    assert "logits" not in {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


@whole_sums
def test_its_own_form_by_hand(tmp_path: Path) -> None:
    """x ~ s * (q - z), q from 0 to 255; the weight as in the other form."""
    source, w, x = one_product(tmp_path)
    made = quantise(onnx.load(str(source)), ranges_of(source, [x], OWN), (), source, OWN)
    save_path = tmp_path / "own.onnx"
    onnx.save(made, save_path)
    step = (float(x.max()) - float(x.min())) / 255
    zero = np.rint(-float(x.min()) / step)
    flat = x.reshape(16, -1).astype(np.float64)
    rounded = (np.clip(np.rint(flat / step) + zero, 0, 255) - zero) * step
    scale = np.abs(w.astype(np.float64)).max(0) / 127
    expected = rounded @ (np.rint(w / scale) * scale)
    assert np.abs(run(save_path, x) - expected).max() < 0.1 * np.abs(expected - flat @ w).max()
    assert np.abs(expected - flat @ w).max() > 0.01


@whole_sums
def test_a_kept_layer_of_its_own_form_stays_in_fp32(tmp_path: Path) -> None:
    model = for_onnxruntime(tmp_path, keep=("conv2",))
    told = reads(model)
    assert told["conv2"] == ["p1", "layer2.weight"]
    assert told["conv1"][0] == "q(input)" and told["add"] == ["q(c3)", "q(p1)"]
    assert optimised(model, tmp_path / "own.onnx")["QLinearConv"] == 2 - ("relu1" in told)
    onnx.save(model, tmp_path / "kept.onnx")
    exact = run(residual_net(tmp_path / "net.onnx"), images(8))
    assert np.abs(run(tmp_path / "kept.onnx", images(8)) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_values_too_near_each_other_for_a_histogram(tmp_path: Path, method: str) -> None:
    """What a local response norm adds up: all of it within 1e-6 of 1."""
    shift, weight = np.ones(1, np.float32), np.eye(4, dtype=np.float32)
    nodes = [helper.make_node("Add", ["x", "shift"], ["h"], "add"), helper.make_node("MatMul", ["h", "w"], ["y"], "m")]
    values = [helper.make_tensor_value_info(name, 1, ["n", 4]) for name in "xy"]
    weights = [numpy_helper.from_array(shift, "shift"), numpy_helper.from_array(weight, "w")]
    body = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    path = tmp_path / "near.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    x = np.random.default_rng(0).uniform(0, 1e-6, (64, 4)).astype(np.float32)
    ranges = ranges_of(path, [x], Calibration(method))  # type: ignore[arg-type]  # parametrised
    low, high = (float(value) for value in ranges.data["h"].range_value)
    assert high == pytest.approx(1.0, rel=1e-2) and -high <= low <= 1
