"""A graph that takes pixels answers what the network answers to images prepared by Pillow and NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from export.onnx import pixels as preprocessing
from export.onnx.pixels import Normalisation, bilinear, pixels_of, prepared, serve_pixels
from runtime.errors import UserError
from runtime.images import Fit
from tests.export.graphs import Array, conv_net, residual_net
from tests.export.lowered import lower
from tests.export.small_engines import needs_rtx

NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255.0)


def pictures(count: int = 6, height: int = 8, width: int = 8) -> Array:
    """uint8 (count, height, width, 3): noise over a slope."""
    drawn = np.random.default_rng(0).integers(0, 120, (count, height, width, 3))
    return np.asarray(drawn + np.arange(width)[None, None, :, None] * (130 // width), np.uint8)


def serve(source: Path, path: Path, **changes: Any) -> preprocessing.ServedGraph:
    options: dict[str, Any] = {"normalisation": NORMALISATION, "size": None, "output": "logits", "k": 2}
    options |= {"pixels": pictures(), "max_abs_diff": 1e-4}
    return serve_pixels(source, path, **{**options, **changes})


def run(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip((item.name for item in session.get_outputs()), session.run(None, feeds), strict=True))


def expected(source: Path, pixels: Array, side: int = 8) -> Array:
    """Softmax of the network's answers: Pillow's resize, then NumPy."""
    resized = np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BILINEAR)) for p in pixels])
    x = (resized / 255.0 - np.array(NORMALISATION.mean)) / np.array(NORMALISATION.std)
    logits = run(source, {"input": x.transpose(0, 3, 1, 2).astype(np.float32)})["logits"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def test_pixels_at_the_networks_own_size(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    made = serve(source, tmp_path / "served.onnx")
    pixels = pictures(5)
    x = (pixels / 255.0 - np.array(NORMALISATION.mean)) / np.array(NORMALISATION.std)
    logits = run(source, {"input": x.transpose(0, 3, 1, 2).astype(np.float32)})["logits"]
    np.testing.assert_allclose(run(made.path, {"images": pixels})["logits"], logits, atol=1e-5)
    model = onnx.load(str(made.path))
    (images,) = model.graph.input
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert images.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert (made.height, made.width) == (8, 8) and made.max_abs_diff < 1e-5
    told = json.loads(next(item.value for item in model.metadata_props if item.key == "demport.serving"))
    assert told == {"height": 8, "width": 8, "resize": "bilinear", "fit": "stretch", "output": "logits", "classes": 5}


@pytest.mark.parametrize("size", [(19, 30), (16, 16), (5, 4), (8, 21)], ids=str)
def test_resizing_is_pillows(tmp_path: Path, size: tuple[int, int]) -> None:
    source = conv_net(tmp_path / "net.onnx")
    made = serve(source, tmp_path / "served.onnx", size=size, output="probabilities")
    pixels = pictures(7, *size)
    answers = run(made.path, {"images": pixels})["probabilities"]
    np.testing.assert_allclose(answers, expected(source, pixels), atol=1e-4)
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)


def test_the_filter_is_pillows() -> None:
    line = np.arange(0, 250, 10, dtype=np.uint8)[None, :]
    for after in (7, 12, 25, 40):
        by_pillow = np.asarray(Image.fromarray(line).resize((after, 1), Image.Resampling.BILINEAR))[0]
        weights = bilinear(25, after)
        assert weights.shape == (after, 25)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(np.floor(weights @ line[0].astype(np.float32) + 0.5), by_pillow, atol=0)


def test_top_k(tmp_path: Path) -> None:
    source = residual_net(tmp_path / "net.onnx")
    made = serve(source, tmp_path / "served.onnx", output="top_k", k=3)
    pixels = pictures(9)
    answers, probabilities = run(made.path, {"images": pixels}), expected(source, pixels)
    order = np.argsort(-probabilities, axis=1)[:, :3]
    np.testing.assert_array_equal(answers["classes"], order)
    np.testing.assert_allclose(answers["scores"], np.take_along_axis(probabilities, order, 1), atol=1e-5)
    with pytest.raises(UserError, match=r"logits float32\[None, 5\]; .* at least 6 classes; .*lower serving.k"):
        serve(source, tmp_path / "no.onnx", output="top_k", k=6)
    assert not (tmp_path / "no.onnx").exists()


def test_a_wrong_normalisation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = conv_net(tmp_path / "net.onnx")

    def other(pixels: Array, normalisation: Normalisation) -> Array:
        return prepared(pixels, Normalisation((0.5,) * 3, (0.5,) * 3, 255.0))

    monkeypatch.setattr(preprocessing, "prepared", other)
    with pytest.raises(UserError, match=r"answers to pixels differ by .* at most 0.0001"):
        serve(source, tmp_path / "served.onnx")
    assert not (tmp_path / "served.onnx").exists()


def test_pixels_come_back_from_normalised_images() -> None:
    pixels = pictures(4)
    x = prepared(pixels, NORMALISATION)
    assert x.shape == (4, 3, 8, 8) and x.dtype == np.float32
    np.testing.assert_array_equal(pixels_of(x, NORMALISATION), pixels)
    with pytest.raises(UserError, match="not whole levels from 0 to 255"):
        pixels_of(x + np.float32(0.01), NORMALISATION)


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_low_precision_graph_with_pixels_is_taken_by_the_parser(tmp_path: Path, precision: Any) -> None:
    import tensorrt_rtx as trt

    low = lower(residual_net(tmp_path / "net.onnx"), tmp_path / "low.onnx", precision)
    made = serve(low.path, tmp_path / "served.onnx", size=(16, 12), output="top_k", max_abs_diff=0.05)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(made.path)), parser.get_error(0).desc()
    assert (network.get_input(0).name, network.get_input(0).dtype) == ("images", trt.DataType.UINT8)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, 16, 12, 3), (4, 16, 12, 3), (8, 16, 12, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


FITS = {
    "crop": Fit("crop", (8, 8), 8),
    "crop of more": Fit("crop", (8, 8), 11),
    "letterbox": Fit("letterbox", (8, 8), 8, (200, 100, 50)),
    "stretch": Fit("stretch", (8, 8), 8),
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("size", [(9, 20), (20, 9), (5, 6)])
def test_another_size_is_fitted_as_training_fits_it(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """By `Fit` on Pillow's images, which training uses."""
    source, fit = conv_net(tmp_path / "net.onnx"), FITS[name]
    made = serve(source, tmp_path / "served.onnx", size=size, fit=fit, max_abs_diff=1e-3)
    sent = pictures(3, *size)
    fitted = np.stack([np.asarray(fit(Image.fromarray(picture))) for picture in sent])
    expected = run(source, {"input": prepared(fitted, NORMALISATION)})["logits"]
    np.testing.assert_allclose(run(made.path, {"images": sent})["logits"], expected, atol=1e-3)
    assert json.loads(metadata(made.path)["demport.serving"])["fit"] == fit.policy


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
