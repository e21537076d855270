"""The bundle for other servers: its layout, what its documents say, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.engines.manifest import Manifest
from export.serving.bundle import bundle
from export.serving.files import Model, Sources
from export.serving.release_index import verify_release
from runtime.backends.openvino import server_properties
from runtime.errors import UserError
from runtime.files import sha256
from tests.export.graphs import conv_net, images
from tests.export.repositories import LABELS, files
from tests.export.small_engines import document, stand_in


@pytest.fixture
def models(tmp_path: Path) -> list[Model]:
    conv_net(tmp_path / "dense.onnx")
    conv_net(tmp_path / "compact.onnx", width=4)
    return [Model("My_Net.v1", {1: tmp_path / "dense.onnx", 2: tmp_path / "compact.onnx"})]


def write(models: list[Model], root: Path, **options: Any) -> Path:
    told = bundle(
        models,
        root / "out",
        Sources(root, {}, 32),
        labels=LABELS,
        samples=images(3),
        storage_uri="s3://b",
        plugin_config={model.name: server_properties(2) for model in models},
        **options,
    )
    assert told.path == root / "out"
    return told.path


def test_layout(models: list[Model], tmp_path: Path) -> None:
    out = write(models, tmp_path)
    inner = ["1/model.onnx", "2/model.onnx", "labels.txt", "sample-request.json", "sample-response.json"]
    assert files(out) == [
        *(f"My_Net.v1/{name}" for name in [*inner, "signature.json"]),
        "config.json",
        "demport.json",
        "kserve.json",
    ]
    assert verify_release(out).kind == "bundle"


def test_documents(models: list[Model], tmp_path: Path) -> None:
    out = write(models, tmp_path)
    signature = json.loads((out / "My_Net.v1" / "signature.json").read_text())
    assert signature["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert signature["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 5]}]
    assert signature["versions"] == ["1", "2"]
    openvino = json.loads((out / "config.json").read_text())["model_config_list"]
    assert [(m["config"]["name"], m["config"]["base_path"]) for m in openvino] == [("My_Net.v1", "/models/My_Net.v1")]
    assert openvino[0]["config"]["plugin_config"] == {
        "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "2",
    }  # fmt: skip
    kserve = json.loads((out / "kserve.json").read_text())
    assert kserve["kind"] == "InferenceService" and kserve["metadata"]["name"] == "my-net-v1"
    assert kserve["spec"]["predictor"]["model"]["storageUri"] == "s3://b"


def test_what_openvino_was_measured_with_goes_with_its_very_file(models: list[Model], tmp_path: Path) -> None:
    made = models[0].versions[2]
    source = {"file": "compact.onnx", "sha256": sha256(made)}
    settings = {"threads": 2, "precision hint": "f32"}
    engine = document(stand_in(tmp_path / "x.engine"), flavour="openvino", onnx=source, settings=settings)
    content = Manifest.model_validate(engine)
    out = write(models, tmp_path, measured=[content])
    told = json.loads((out / "My_Net.v1" / "openvino.json").read_text())
    assert list(told) == ["2"] and told["2"]["onnx"]["sha256"] == sha256(out / "My_Net.v1" / "2" / "model.onnx")
    assert (told["2"]["version"], told["2"]["settings"]) == (content.version, settings)
    other = content.model_copy(update={"onnx": content.onnx.model_copy(update={"sha256": "0" * 64})})
    again = write(models, tmp_path, measured=[other], replace=True)
    assert not (again / "My_Net.v1" / "openvino.json").exists() and verify_release(again).serial == 2


def test_the_request_has_its_answer(models: list[Model], tmp_path: Path) -> None:
    out = write(models, tmp_path) / "My_Net.v1"
    (tensor,) = json.loads((out / "sample-request.json").read_text())["inputs"]
    (answer,) = json.loads((out / "sample-response.json").read_text())["outputs"]
    x = np.float32(tensor["data"]).reshape(tensor["shape"])
    (logits,) = onnxruntime.InferenceSession(str(out / "2" / "model.onnx")).run(None, {tensor["name"]: x})
    np.testing.assert_allclose(np.float32(answer["data"]), logits[0], atol=1e-6)
    assert (tensor["datatype"], tensor["shape"], answer["shape"]) == ("FP32", [1, 3, 8, 8], [1, 5])


def test_engines_are_refused_and_an_old_bundle_stays(models: list[Model], tmp_path: Path) -> None:
    out = write(models, tmp_path)
    engine = Model("net", {1: stand_in(tmp_path / "x.engine")})
    with pytest.raises(UserError, match=r"x\.engine in a bundle; ONNX files"):
        write([engine], tmp_path, replace=True)
    with pytest.raises(UserError, match="out exists; a new folder"):
        write(models, tmp_path)
    assert verify_release(out).serial == 1
