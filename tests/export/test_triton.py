"""A published repository is complete, true to its sources, and nothing else; what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export import triton
from export.served import NAME, Model, Sources, safe_name
from export.triton import Content, Repository
from export.triton_config import Serving
from runtime.errors import UserError
from tests.export.engines import build, needs_rtx, stand_in
from tests.export.graphs import conv_net, images

LABELS = ("zero", "one", "two", "three", "größer")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a dense and a compact network of the same interface, and an engine of each."""
    folder = tmp_path / "run"
    folder.mkdir()
    conv_net(folder / "dense.onnx", width=8)
    conv_net(folder / "compact.onnx", width=4)
    stand_in(folder / "dense.engine", b"dense engine")
    stand_in(folder / "compact.engine", b"compact engine", profiles=[{"input": shapes(1, 4, 8)}])
    return folder


def shapes(low: int, opt: int, high: int) -> dict[str, list[int]]:
    return {key: [size, 3, 8, 8] for key, size in (("min", low), ("opt", opt), ("max", high))}


def publish(
    models: list[Model],
    directory: Path,
    *,
    root: Path,
    labels: tuple[str, ...] = (),
    samples: Any = None,
    hashes: dict[Path, str] | None = None,
    max_batch: int = 256,
    allow_rtx: bool = False,
    replace: bool = False,
    **serving: Any,
) -> Repository:
    return triton.publish(
        models,
        directory,
        Sources(root, hashes or {}, max_batch, allow_rtx),
        content=Content(labels, samples),
        serving=Serving(**serving),
        replace=replace,
    )


def onnx_model(run: Path, **changes: Any) -> Model:
    return Model(**{"name": "digits", "versions": {1: run / "dense.onnx", 2: run / "compact.onnx"}, **changes})


def engine_model(run: Path, **changes: Any) -> Model:
    return Model(**{"name": "digits_trt", "versions": {1: run / "dense.engine", 2: run / "compact.engine"}, **changes})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def config_of(repository: Repository, name: str) -> Any:
    text_format = pytest.importorskip("google.protobuf.text_format")
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    return text_format.Parse((repository.path / name / "config.pbtxt").read_text(), pb2.ModelConfig())


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


BAD_NAMES = ("", ".", "..", "../up", "a/b", "/abs", ".hidden", "a b", "a\nb", "a\x00", "é", "x" * 129)


@pytest.mark.parametrize("name", [*BAD_NAMES, "demport.json"])
def test_names_that_are_paths_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the model name"):
        publish([onnx_model(run, name=name)], tmp_path / "repo", root=run)
    assert [item.name for item in tmp_path.iterdir()] == ["run"]
    assert NAME.fullmatch(safe_name(name))
    assert name not in BAD_NAMES or safe_name(name) != name


def refused(run: Path, tmp_path: Path, found: str, *models: Model, **options: Any) -> None:
    with pytest.raises(UserError, match=found) as caught:
        publish(list(models), tmp_path / "repo", root=run, **options)
    assert "\n" not in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith((".", "repo"))] == []


def test_links_and_files_outside_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    outside = conv_net(tmp_path / "outside.onnx")
    refused(run, tmp_path, r"outside\.onnx lies outside", onnx_model(run, versions={1: outside}))
    refused(run, tmp_path, "lies outside", onnx_model(run, versions={1: run / ".." / "outside.onnx"}))
    (run / "link.onnx").symlink_to(outside)
    refused(run, tmp_path, r"link\.onnx is a symbolic link", onnx_model(run, versions={1: run / "link.onnx"}))
    (tmp_path / "elsewhere").mkdir()
    conv_net(tmp_path / "elsewhere" / "net.onnx")
    (run / "folder").symlink_to(tmp_path / "elsewhere")
    refused(run, tmp_path, "lies outside", onnx_model(run, versions={1: run / "folder" / "net.onnx"}))
    os.mkfifo(run / "pipe.onnx")
    refused(run, tmp_path, "is no plain file", onnx_model(run, versions={1: run / "pipe.onnx"}))
    refused(run, tmp_path, "lies outside", engine_model(run, reference=outside), samples=images(1))


def test_hashes_that_differ_are_refused(run: Path, tmp_path: Path) -> None:
    (run / "dense.engine").write_bytes(b"dense engin3")
    refused(run, tmp_path, r"dense\.engine has the SHA-256 .* as recorded", engine_model(run))
    hashes = {run / "compact.onnx": "0" * 64}
    refused(run, tmp_path, r"compact\.onnx has the SHA-256", onnx_model(run), hashes=hashes)
    true = {run / "compact.onnx": hashlib.sha256((run / "compact.onnx").read_bytes()).hexdigest()}
    assert publish([onnx_model(run)], tmp_path / "fine", root=run, hashes=true).models[0].name == "digits"


def test_requests_that_do_not_fit_are_refused(run: Path, tmp_path: Path) -> None:
    model = onnx_model(run)
    refused(run, tmp_path, r"the model names \[\]")
    refused(run, tmp_path, r"the model names \['digits', 'digits'\]", model, model)
    refused(run, tmp_path, r"the versions \[\] of 'digits'", onnx_model(run, versions={}))
    refused(run, tmp_path, r"the versions \[0\]", onnx_model(run, versions={0: run / "dense.onnx"}))
    refused(run, tmp_path, "4 class names for 'digits'; 5, one per logit", model, labels=LABELS[:4])
    refused(run, tmp_path, "empty or spans lines", model, labels=("a", "b\nc", "d", "e", "f"))
    refused(run, tmp_path, r"samples float32\[3, 9, 9\] for 'digits'", model, samples=images(2, side=9))
    refused(run, tmp_path, "samples float64", model, samples=images(2).astype(np.float64))
    mixed = onnx_model(run, versions={1: run / "dense.onnx", 2: run / "compact.engine"})
    refused(run, tmp_path, "the versions of 'digits' differ in kind, inputs or outputs", mixed)
    conv_net(run / "other.onnx", classes=6)
    other = onnx_model(run, versions={1: run / "dense.onnx", 2: run / "other.onnx"})
    refused(run, tmp_path, "differ in kind, inputs or outputs", other)
    (run / "bad.onnx").write_bytes(b"no graph")
    refused(run, tmp_path, r"run/bad\.onnx cannot be read", onnx_model(run, versions={1: run / "bad.onnx"}))
    refused(run, tmp_path, r"gone\.onnx cannot be read", onnx_model(run, versions={1: run / "gone.onnx"}))
    (run / "bare.engine").write_bytes(b"no manifest")
    refused(run, tmp_path, r"bare\.engine\.json cannot be read", onnx_model(run, versions={1: run / "bare.engine"}))


@needs_rtx
def test_engines_of_rtx_only_where_the_server_is_known_to_load_them(run: Path, tmp_path: Path) -> None:
    build(run / "dense.onnx", run / "rtx.engine")
    model = Model("net", {1: run / "rtx.engine"})
    refused(run, tmp_path, r"rtx\.engine was built by tensorrt_rtx; an engine of tensorrt", model)
    made = publish([model], tmp_path / "fine", root=run, allow_rtx=True)
    told = config_of(made, "net")
    assert (told.platform, told.max_batch_size, list(told.input[0].dims)) == ("tensorrt_plan", 16, [3, 8, 8])
    assert (made.path / "net/1/model.plan").read_bytes() == (run / "rtx.engine").read_bytes()
