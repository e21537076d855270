"""What a lower precision costs is measured, and layers stay in fp32 where it costs too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from export.onnx.from_torch import OnnxGraph
from export.precision.lower import Images, Lowering, Precision, Rules
from runtime.errors import UserError
from runtime.measure.judged import Judge
from tests.export.conftest import Residual
from tests.export.graphs import conv_net, images, residual_net, save
from tests.export.lowered import given, lower, right, run
from tests.export.small_engines import needs_rtx

ALL: tuple[Precision, ...] = ("fp16", "bf16", "int8")


@pytest.mark.parametrize("precision", ALL)
def test_a_network_exported_from_torch(
    exported: tuple[Residual, OnnxGraph], tmp_path: Path, precision: Precision
) -> None:
    _, graph = exported
    made = lower(graph.path, tmp_path / "low.onnx", precision)
    assert (made.layers, made.kept, made.holds) == (4, (), True)
    assert made.bytes == made.path.stat().st_size
    assert made.accuracy_fp32 == 1.0 and 0.9 <= made.accuracy <= 1.0
    assert made.drop_pp == pytest.approx(100 * (1 - made.accuracy))
    assert made.images == 64
    assert 0 < made.max_abs_diff < 0.3
    assert (made.largest is not None) == (precision == "fp16")


@pytest.mark.parametrize("precision", ALL)
def test_a_fixed_batch(tmp_path: Path, precision: Precision) -> None:
    made = lower(conv_net(tmp_path / "net.onnx", batch=2), tmp_path / "low.onnx", precision, images(3))
    assert made.layers == 3
    assert made.max_abs_diff < 0.1


def test_an_activation_beyond_fp16_stays_in_fp32(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx", scale=1e4)  # weights up to 1e4, convolutions of them beyond 65504
    x = images(100) * 10
    made = lower(source, tmp_path / "low.onnx", "fp16", x)
    reasons = {kept.layer: kept.reason for kept in made.kept}
    assert set(reasons) == {"conv1", "relu1", "conv2", "relu2", "mean"}
    assert reasons["conv1"].startswith("c1 reaches ")
    assert made.layers == 1 and made.largest is not None and made.largest < 65504
    assert made.max_abs_diff / np.abs(run(source, x)).max() < 1e-3
    with pytest.raises(UserError, match=r"'c1' in .* reaches .* on the samples; .* up to 65504.*keep_fp32: auto"):
        lower(source, tmp_path / "refused.onnx", "fp16", x, keep_fp32=())
    assert not (tmp_path / "refused.onnx").exists()


@pytest.mark.parametrize("precision", ALL)
def test_nothing_to_lower_is_an_error(tmp_path: Path, precision: Precision) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["m"], keepdims=0, name="mean"),
        helper.make_node("Relu", ["m"], ["logits"], name="relu"),
    ]
    source = save(tmp_path / "net.onnx", nodes, {"axes": np.array([2, 3], np.int64)}, classes=3)
    with pytest.raises(UserError, match=rf"no convolution or matrix product of .* ended in {precision}"):
        lower(source, tmp_path / "low.onnx", precision)
    assert not (tmp_path / "low.onnx").exists()


def test_the_most_sensitive_layer_stays_where_the_gate_would_not_hold(tmp_path: Path) -> None:
    """r2 has one channel 3,000 times as large as the others: int8 keeps nothing of them at conv3's input."""
    source = residual_net(tmp_path / "net.onnx", loud=3000.0)
    x = images(256)
    free = lower(source, tmp_path / "free.onnx", "int8", x, keep_fp32=())
    assert free.drop_pp > 5 and free.kept == ()
    made = lower(source, tmp_path / "low.onnx", "int8", x, max_accuracy_drop=5.0)
    assert [kept.weight for kept in made.kept] == ["layer3"]
    assert made.kept[0].error is not None and made.kept[0].error > 0.01
    assert made.holds and made.drop_pp <= 5.0 and made.layers == 3
    assert made.accuracy == np.mean(run(made.path, x).argmax(1) == run(source, x).argmax(1))


def test_a_gate_that_cannot_hold_is_said(tmp_path: Path) -> None:
    """Labels that only the fp32 graph meets, and a fourth of a point to lose where one image is more than that."""
    source = residual_net(tmp_path / "net.onnx", loud=3000.0)
    made = lower(source, tmp_path / "low.onnx", "int8", images(256), max_accuracy_drop=0.0, keep_fp32=("head",))
    assert not made.holds
    assert [(kept.layer, kept.reason) for kept in made.kept] == [("head", "precision.keep_fp32")]
    assert made.drop_pp > 0 and made.path.exists()


def test_layers_are_named_by_weight_or_node(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    made = lower(source, tmp_path / "low.onnx", "bf16", keep_fp32=("layer2", "conv3"))
    assert [(kept.layer, kept.weight) for kept in made.kept] == [("conv2", "layer2"), ("conv3", "layer3")]
    types = {tensor.name: tensor.data_type for tensor in onnx.load(str(made.path)).graph.initializer}
    assert types["layer2.weight"] == types["layer3.weight"] == onnx.TensorProto.FLOAT
    assert types["layer1.weight"] == onnx.TensorProto.BFLOAT16
    with pytest.raises(UserError, match=r"precision.keep_fp32 names 'layer9'; a layer of .*, e.g. head, layer1"):
        lower(source, tmp_path / "no.onnx", "bf16", keep_fp32=("layer9",))
    assert not (tmp_path / "no.onnx").exists()


def test_no_images_to_judge_by_is_an_error(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    sources = given(source, images(4))
    none = Images(sources.samples, sources.calibration, lambda: [], Judge(right))
    with pytest.raises(UserError, match="no images to measure the accuracy on"):
        Lowering(source, none).write(tmp_path / "low.onnx", "fp16", Rules(1.0))
    assert not (tmp_path / "low.onnx").exists()


def test_a_foreign_detector(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "weights" / "linzaer_version-slim-320_simplified.onnx"
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 240, 320)).astype(np.float32)
    labels = np.zeros((1, 2), np.int64)
    batch = x[:1]
    lowering = Lowering(
        source,
        Images(
            x,
            lambda: [batch],
            lambda: [(batch, labels)],
            Judge(lambda scores, _: scores[:, 0, 0] >= 0, ("scores",)),
        ),
    )
    made = lowering.write(tmp_path / "half.onnx", "fp16", Rules(100.0))
    assert (made.nodes_fp32, made.nodes_low) == (0, 95)
    assert made.bytes / source.stat().st_size == pytest.approx(0.5, abs=0.03)


@needs_rtx
@pytest.mark.parametrize("precision", ALL)
def test_tensorrt_rtx_builds_what_we_write(tmp_path: Path, precision: Precision) -> None:
    """The parser takes the graph, the layers compute in the type asked for, and an engine comes out."""
    import tensorrt_rtx as trt

    made = lower(residual_net(tmp_path / "net.onnx"), tmp_path / "low.onnx", precision)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(made.path)), parser.get_error(0).desc()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    wanted = {"fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16, "int8": trt.DataType.FLOAT}[precision]
    assert [layer.get_output(0).dtype for layer in layers if layer.type in kinds] == [wanted] * 4
    quantisers = [layer for layer in layers if layer.type == trt.LayerType.QUANTIZE]
    assert len(quantisers) == (made.conversions if precision == "int8" else 0)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
