"""Pixels in, class name out: the graphs before and after the network, and the ensemble of the three."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.onnx.graph import open_graph
from export.serving.files import Model, Sources
from export.serving.triton import Content, publish
from export.serving.triton_ensemble import Images, names_graph, pixels_graph, write_sample
from pipeline.commands.ask import load_image
from tests.export.graphs import conv_net, images
from tests.export.repositories import LABELS, config_of, files

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 1.0, 2.0)


def photos(count: int = 6) -> Images:
    pixels = np.random.default_rng(3).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Images(pixels, MEAN, STD, 255.0, 255.0)


def test_pixels_are_normalised_as_in_training() -> None:
    given = photos()
    (got,) = open_graph(pixels_graph(given)).run(None, {"image": given.pixels})
    turned = given.pixels.transpose(0, 3, 1, 2).astype(np.float32)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    wanted = (turned / np.float32(255) - mean) / std
    assert got.dtype == np.float32 and got.shape == (6, 3, 8, 8)
    np.testing.assert_array_equal(got, wanted)


def test_float_pixels_stay_float() -> None:
    floats = Images(photos().pixels.astype(np.float32) / 16, MEAN, STD, 1.0, 16.0)
    session = open_graph(pixels_graph(floats))
    assert session.get_inputs()[0].type == "tensor(float)"
    (got,) = session.run(None, {"image": floats.pixels})
    np.testing.assert_allclose(got[0, 1], floats.pixels[0, :, :, 1] - 0.25, atol=1e-6)


def test_names_come_with_their_probability() -> None:
    logits = np.log(np.array([[1, 2, 5, 1, 1], [6, 1, 1, 1, 1], [0.1, 0.2, 0.1, 0.1, 9.5]], np.float32))
    name, probability = open_graph(names_graph(LABELS)).run(None, {"logits": logits})
    assert name.tolist() == [["two"], ["zero"], ["größer"]]
    np.testing.assert_allclose(probability, [[0.5], [0.6], [0.95]], atol=1e-6)


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    root = tmp_path / "run"
    root.mkdir()
    conv_net(root / "dense.onnx")
    conv_net(root / "compact.onnx", width=4)
    conv_net(root / "fixed.onnx", batch=1)
    models = [
        Model("digits", {1: root / "dense.onnx", 2: root / "compact.onnx"}),
        Model("fixed", {1: root / "fixed.onnx"}),
    ]
    content = Content(LABELS, images(4), photos(), "digits")
    return publish(models, tmp_path / "repo", Sources(root, {}, 32), content=content)


def test_the_ensemble_wires_three_models(repository: Any) -> None:
    told = config_of(repository, "digits_classify")
    assert told.platform == "ensemble" and told.max_batch_size == 32
    assert [(i.name, list(i.dims)) for i in told.input] == [("image", [8, 8, 3])]
    assert [o.name for o in told.output] == ["class", "probability"]
    steps = [(s.model_name, dict(s.input_map), dict(s.output_map)) for s in told.ensemble_scheduling.step]
    assert [name for name, _, _ in steps] == ["digits_pixels", "digits", "digits_names"]
    for (_, _, gives), (_, takes, _) in itertools.pairwise(steps):
        assert set(takes.values()) <= set(gives.values())
    assert {s.model_version for s in told.ensemble_scheduling.step} == {-1}


def test_only_models_that_take_images_one_by_one_get_one(repository: Any) -> None:
    assert [m.name for m in repository.models if m.platform == "ensemble"] == ["digits_classify"]
    assert "digits_classify/1/ensemble.txt" in files(repository.path)  # Triton wants a version folder
    described = next(m.image for m in repository.models if m.image is not None)
    assert (described.height, described.channels, described.dtype, described.high) == (8, 3, "uint8", 255.0)


def test_recorded_classes_are_the_networks(repository: Any) -> None:
    recorded = json.loads((repository.path / "digits_classify/input-data.json").read_text())
    session = onnxruntime.InferenceSession(str(repository.path / "digits/2/model.onnx"))
    given = photos().pixels
    for row, answer in enumerate(recorded["validation_data"]):
        x = given[row : row + 1].transpose(0, 3, 1, 2) / 255
        x = (x - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        (logits,) = session.run(None, {"input": x.astype(np.float32)})
        assert answer["class"] == {"content": [LABELS[int(logits.argmax())]], "shape": [1]}
        shares = np.exp(logits[0] - logits.max())
        assert answer["probability"]["content"][0] == pytest.approx(shares.max() / shares.sum(), abs=1e-5)
    assert len(recorded["validation_data"]) == 4


def test_a_sample_to_send_stands_beside_the_ensemble(repository: Any, tmp_path: Path) -> None:
    """Read as `demport ask --image` does, it is the first image again, whatever range its pixels have."""
    assert "digits_classify/sample.png" in files(repository.path)
    for dtype, high, channels in (("uint8", 255, 3), ("uint8", 16, 1), ("uint8", 200, 4), ("float32", 1, 3)):
        drawn = np.random.default_rng(7).integers(0, high + 1, (2, 5, 7, channels)).astype(dtype)
        given = Images(drawn, MEAN, STD, 1.0, float(high))
        write_sample(tmp_path, given)
        np.testing.assert_allclose(load_image(tmp_path / "sample.png", given.described), drawn[0], atol=1e-6)
        (tmp_path / "sample.png").unlink()
    for odd in (np.zeros((1, 4, 4, 2), np.uint8), np.full((1, 4, 4, 1), -1, np.float32)):
        write_sample(tmp_path, Images(odd, MEAN, STD, 1.0, 1.0))
        assert not (tmp_path / "sample.png").exists()
