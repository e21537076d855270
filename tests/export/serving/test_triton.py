"""A published repository is complete, true to its sources, and nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.serving.files import Model
from runtime.errors import UserError
from tests.export.graphs import conv_net, images
from tests.export.repositories import LABELS, config_of, engine_model, files, onnx_model, publish, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_layout_and_content(run: Path, tmp_path: Path) -> None:
    made = publish(
        [onnx_model(run), engine_model(run)],
        tmp_path / "repo",
        root=run,
        labels=LABELS,
        samples=images(9),
        max_batch=32,
    )
    assert files(made.path) == [
        "demport.json",
        "digits/1/model.onnx",
        "digits/2/model.onnx",
        "digits/config.pbtxt",
        "digits/input-data.json",
        "digits/labels.txt",
        "digits/sample-request.json",
        "digits/sample-response.json",
        "digits/warmup/input0",
        "digits_trt/1/model.plan",
        "digits_trt/1/model.plan.json",
        "digits_trt/2/model.plan",
        "digits_trt/2/model.plan.json",
        "digits_trt/config.pbtxt",
        "digits_trt/input-data.json",
        "digits_trt/labels.txt",
        "digits_trt/sample-request.json",
        "digits_trt/warmup/input0",
    ]
    assert (made.path / "digits/1/model.onnx").read_bytes() == (run / "dense.onnx").read_bytes()
    assert (made.path / "digits_trt/2/model.plan").read_bytes() == b"compact engine"
    assert (made.path / "digits/labels.txt").read_text(encoding="utf-8").splitlines() == list(LABELS)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["repo", "run"]


def test_configs_parse_and_name_the_folder(run: Path, tmp_path: Path) -> None:
    made = publish([onnx_model(run), engine_model(run)], tmp_path / "repo", root=run, labels=LABELS, max_batch=32)
    onnx_config, engine_config = (config_of(made, name) for name in ("digits", "digits_trt"))
    assert (onnx_config.name, onnx_config.platform, onnx_config.max_batch_size) == ("digits", "onnxruntime_onnx", 32)
    assert (engine_config.name, engine_config.platform) == ("digits_trt", "tensorrt_plan")
    assert engine_config.max_batch_size == 8  # of the version that takes less
    assert list(engine_config.dynamic_batching.preferred_batch_size) == [4]
    assert onnx_config.output[0].label_filename == "labels.txt"
    assert [model.max_batch_size for model in made.models] == [32, 8]


def test_index_lists_the_hashes(run: Path, tmp_path: Path) -> None:
    made = publish([onnx_model(run)], tmp_path / "repo", root=run)
    index = json.loads((made.path / "demport.json").read_text())
    digests = [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("dense.onnx", "compact.onnx")]
    assert index["schema"] == 1
    assert index["serial"] == 1
    assert index["files"]["digits/1/model.onnx"] == digests[0]
    assert index["models"][0]["sha256"] == {"1": digests[0], "2": digests[1]}
    assert str(run) not in (made.path / "demport.json").read_text()


def test_nothing_is_executable_and_a_server_may_read(run: Path, tmp_path: Path) -> None:
    (run / "dense.onnx").chmod(0o777)
    made = publish([onnx_model(run)], tmp_path / "repo", root=run, labels=LABELS, samples=images(1))
    modes = {path.stat().st_mode & 0o777 for path in made.path.rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert {path.stat().st_mode & 0o777 for path in (made.path, *made.path.rglob("*")) if path.is_dir()} == {0o755}


def test_recorded_outputs_are_the_latest_versions(run: Path, tmp_path: Path) -> None:
    x = images(9)
    made = publish([onnx_model(run)], tmp_path / "repo", root=run, samples=x)
    recorded = json.loads((made.path / "digits/input-data.json").read_text())
    session = onnxruntime.InferenceSession(str(run / "compact.onnx"), providers=["CPUExecutionProvider"])
    assert len(recorded["data"]) == len(recorded["validation_data"]) == 4
    for row, (request, answer) in enumerate(zip(recorded["data"], recorded["validation_data"], strict=True)):
        assert request["input"]["shape"] == [3, 8, 8]
        np.testing.assert_array_equal(np.float32(request["input"]["content"]), x[row].ravel())
        (logits,) = session.run(None, {"input": x[row : row + 1]})
        assert answer["logits"]["shape"] == [5]
        np.testing.assert_allclose(np.float32(answer["logits"]["content"]), logits[0], atol=1e-6)


def test_engines_record_what_their_reference_says(run: Path, tmp_path: Path) -> None:
    made = publish([engine_model(run)], tmp_path / "one", root=run, samples=images(2))
    assert "validation_data" not in json.loads((made.path / "digits_trt/input-data.json").read_text())
    model = engine_model(run, reference=run / "dense.onnx")
    made = publish([model], tmp_path / "two", root=run, samples=images(2))
    recorded = json.loads((made.path / "digits_trt/input-data.json").read_text())
    assert len(recorded["validation_data"]) == 2
    assert "digits_trt/2/reference.tmp" not in files(made.path)


def test_a_fixed_batch_is_recorded_whole(tmp_path: Path) -> None:
    conv_net(tmp_path / "net.onnx", batch=2)
    made = publish([Model("net", {1: tmp_path / "net.onnx"})], tmp_path / "repo", root=tmp_path, samples=images(3))
    recorded = json.loads((made.path / "net/input-data.json").read_text())
    assert recorded["data"][0]["input"]["shape"] == [2, 3, 8, 8]
    assert recorded["validation_data"][0]["logits"]["shape"] == [2, 5]
    assert config_of(made, "net").max_batch_size == 0


def test_an_existing_target_is_replaced_only_on_demand(run: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish([onnx_model(run)], repo, root=run)
    with pytest.raises(UserError, match="repo exists; a new folder"):
        publish([engine_model(run)], repo, root=run)
    assert "digits/config.pbtxt" in files(repo)
    publish([engine_model(run)], repo, root=run, replace=True)
    assert {name.split("/")[0] for name in files(repo)} == {"demport.json", "digits_trt"}
    assert sorted(item.name for item in tmp_path.iterdir()) == [".repo.previous", "repo", "run"]
    assert "digits/config.pbtxt" in files(tmp_path / ".repo.previous")


def test_replace_spares_what_demport_did_not_publish(run: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"precious holds no demport\.json"):
        publish([onnx_model(run)], precious, root=run, replace=True)
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(UserError, match="link exists"):
        publish([onnx_model(run)], tmp_path / "link", root=run, replace=True)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_labels_sample_and_served_version_reach_the_config(run: Path, tmp_path: Path) -> None:
    made = publish(
        [onnx_model(run), engine_model(run)],
        tmp_path / "repo",
        root=run,
        labels=LABELS,
        samples=images(9),
        versions=(1,),
        instances=3,
        preferred=(2, 8),
        cuda_graphs=True,
    )
    told, engine = config_of(made, "digits"), config_of(made, "digits_trt")
    assert list(told.version_policy.specific.versions) == [1]
    assert [(w.batch_size, w.inputs["input"].input_data_file) for w in told.model_warmup] == [
        (1, "input0"),
        (2, "input0"),
        (8, "input0"),
    ]
    assert (made.path / "digits/warmup/input0").read_bytes() == images(1).tobytes()
    assert [spec.batch_size for spec in engine.optimization.cuda.graph_spec] == [1, 2, 8]
    assert not told.optimization.cuda.graphs and told.instance_group[0].count == 3
    recorded = json.loads((made.path / "digits/sample-response.json").read_text())
    session = onnxruntime.InferenceSession(str(run / "dense.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images(1)})
    np.testing.assert_allclose(np.float32(recorded["outputs"][0]["data"]), logits[0], atol=1e-6)
