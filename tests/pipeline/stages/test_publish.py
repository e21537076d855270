"""`demport publish` on a real run: layouts, what is served, bundles, rollback, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from export.serving.release_index import read_index, verify_release
from pipeline import cli, config, data
from pipeline.config import yaml
from pipeline.data import arrays
from pipeline.data.raw import Raw
from pipeline.stages.publish import images_of
from runtime.documents import seal_of
from tests.conftest import REPOSITORY


def call(*arguments: str | Path) -> int:
    return cli.command_line([str(argument) for argument in arguments])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(document, dict)
    return document


def models(folder: Path) -> list[str]:
    return [model.name for model in verify_release(folder).models]


def test_versions_replace_and_rollback(copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "models"
    assert call("publish", copied_run, here) == 0
    first = told(capsys)
    assert (first["swap"], first["serial"], first["format"], first["left_out"]) == ("new", 1, "triton", [])
    assert call("publish", copied_run, here, "--replace", "--set", "publish.serve=dense") == 0
    assert told(capsys)["serial"] == 2
    assert "specific { versions: [1] }" in (here / "tiny" / "config.pbtxt").read_text()
    assert call("publish", here, "--rollback") == 0
    assert told(capsys)["serial"] == 1
    assert "all { }" in (here / "tiny" / "config.pbtxt").read_text()
    assert call("publish", copied_run, here, "--rollback") == 0
    assert told(capsys)["serial"] == 2


def test_names_apart(copied_run: Path, tmp_path: Path) -> None:
    options: list[str | Path] = [
        "--set",
        "publish.layout=names",
        "--set",
        "publish.classify=false",
        "--set",
        "publish.warmup=false",
    ]
    assert call("publish", copied_run, tmp_path / "models", *options) == 0
    names = models(tmp_path / "models")
    assert {"tiny_dense", "tiny_compact"} <= set(names) and "tiny_classify" not in names
    dense, compact = (tmp_path / "models" / f"tiny_{role}" / "1" / "model.onnx" for role in ("dense", "compact"))
    assert dense.read_bytes() == (copied_run / "50-simplify" / "dense.onnx").read_bytes()
    assert compact.read_bytes() == (copied_run / "50-simplify" / "compact.onnx").read_bytes()
    assert not list((tmp_path / "models").rglob("warmup"))


def test_a_bundle(copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[str | Path] = ["publish", copied_run, tmp_path / "out", "--format", "bundle"]
    assert call(*arguments, "--set", "publish.storage_uri=s3://bucket/x") == 0
    assert told(capsys)["format"] == "bundle"
    assert read_index(tmp_path / "out").kind == "bundle"
    assert "s3://bucket/x" in (tmp_path / "out" / "kserve.json").read_text()
    assert not list((tmp_path / "out").rglob("*.pbtxt"))


def test_graphs_that_no_server_gets_are_named(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the graphs that take pixels: what the stage's record lists and publish passes over."""
    path = copied_run / "55-precision" / "stage.json"
    record = json.loads(path.read_text())
    record["result"]["completed"] = {"compact.fp32": str(copied_run / "50-simplify" / "compact.nms.onnx")}
    record["seal"] = seal_of(record)
    path.write_text(json.dumps(record))
    assert call("publish", copied_run, tmp_path / "models") == 0
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out.splitlines()[-1])["left_out"]
    assert row["what"] == ["compact.nms.onnx"] and "left to the client" in row["why"]
    assert f"left out: compact.nms.onnx ({row['why']})" in shown.err


def test_what_is_refused(copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "models"
    cases: list[tuple[list[str | Path], str]] = [
        (["publish", copied_run], "no folder to write; demport publish RUN DIR"),
        (["publish", copied_run, here, "--replace", "--rollback"], "--rollback with --replace; one of them"),
        (["publish", copied_run, here, "--set", "name=other"], "on a finished run; a key of the section publish"),
        (["publish", copied_run, here, "--set", "publish.layout=odd"], "`publish.layout`"),
        (["publish", copied_run, here, "--set", "publish.preferred_batches=[512]"], "the preferred batch 512"),
        (["publish", here, "--rollback"], "has no release before it"),
    ]
    for arguments, message in cases:
        assert call(*arguments) == 2, message
        shown = capsys.readouterr()
        assert message in shown.err and shown.err.splitlines()[-1].startswith("error: ")
    assert not here.exists() and not list(tmp_path.glob(".models*"))


def test_a_file_changed_after_the_run_is_refused(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied_run / "50-simplify" / "compact.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert call("publish", copied_run, tmp_path / "models") == 2
    assert "50-simplify: compact.onnx was changed" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_pixels_of_digits_are_whole_numbers_to_16() -> None:
    from sklearn.datasets import load_digits

    images = images_of(data.load(config.Data()))
    assert (str(images.pixels.dtype), images.pixels.shape, images.high) == ("uint8", (4, 8, 8, 1), 16.0)
    known = {image.astype(np.uint8).tobytes() for image in load_digits().images}
    assert all(pixels.tobytes() in known for pixels in images.pixels)


def test_float_pixels_stay_as_they_are() -> None:
    drawn = np.random.default_rng(0).random((40, 4, 4, 3))
    labels = np.arange(40) % 2
    made = arrays.dataset(Raw("own", drawn[:20], labels[:20], drawn[20:], labels[20:], None), None, "mark")
    images = images_of(made)
    assert images.pixels.dtype == np.float32
    np.testing.assert_allclose(images.pixels, drawn[20:24], atol=1e-6)
    assert images.high == pytest.approx(drawn[20:].max(), abs=1e-5)
    assert torch.is_tensor(made.test.labels)


WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg"):
        raise SystemExit(f"a connection: {event} {arguments}")
sys.addaudithook(watch)
from pipeline import cli
sys.exit(cli.command_line(sys.argv[1:]))
"""


def watched(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCH, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=300, check=False)


def test_publishing_and_doctor_connect_to_nothing(copied_run: Path, tmp_path: Path) -> None:
    for arguments in (("publish", copied_run, tmp_path / "models"), ("doctor",)):
        done = watched(*arguments)
        assert done.returncode == 0, done.stderr
    asked = watched("ask", "http://127.0.0.1:9", tmp_path / "models")
    assert "a connection: socket.getaddrinfo" in asked.stderr or "a connection: socket.connect" in asked.stderr


@pytest.mark.slow
def test_the_whole_line_connects_to_nothing(config: Path, tmp_path: Path) -> None:
    done = watched("run", config, "--out", tmp_path / "run")
    assert done.returncode in (0, 3), done.stderr
    assert "a connection" not in done.stderr


def refused(capsys: pytest.CaptureFixture[str], target: Path, *arguments: str | Path) -> str:
    """The one line of error; nothing stands at `target` or beside it."""
    assert call(*arguments) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("error: ") and not any("Traceback" in line for line in shown)
    assert not target.exists() and not list(target.parent.glob(f".{target.name}.*"))
    return shown[-1]


def test_a_run_that_is_not_finished(copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "models"
    shutil.rmtree(copied_run / "55-precision")
    assert "55-precision: not there; expected a finished stage; run `demport run`" in refused(
        capsys, here, "publish", copied_run, here
    )
    assert "no run folder" in refused(capsys, here, "publish", tmp_path, here)
    assert "no run folder" in refused(capsys, here, "publish", tmp_path / "absent", here)


def test_what_the_check_said_is_told(copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only of the check of these very stages."""
    check = json.loads((copied_run / "70-check" / "check.json").read_text())["verdict"]["status"]
    assert call("publish", copied_run, tmp_path / "one") == 0
    assert told(capsys)["verdict"] == check
    shutil.rmtree(copied_run / "70-check")
    assert call("publish", copied_run, tmp_path / "two") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1])["verdict"] is None
    assert f"note: the check of {copied_run} is not done" in shown.err


def test_a_check_of_other_stages_does_not_count(copied_run: Path, tmp_path: Path) -> None:
    from pipeline.commands.finished_run import _verdict
    from pipeline.workspace.folder import Done

    record = json.loads((copied_run / "70-check" / "stage.json").read_text())
    digest = record["upstream"]["50-simplify"]
    assert _verdict(copied_run, [Done("50-simplify", copied_run / "50-simplify", digest, ran=False)]) is not None
    assert _verdict(copied_run, [Done("50-simplify", copied_run / "50-simplify", "0" * 64, ran=False)]) is None


def test_links_that_leave_the_run_are_refused(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files behind them have the recorded hashes."""
    here, stage = tmp_path / "models", copied_run / "50-simplify"
    (stage / "compact.onnx").rename(tmp_path / "elsewhere.onnx")
    (stage / "compact.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    assert "compact.onnx is a symbolic link; a plain file" in refused(capsys, here, "publish", copied_run, here)
    (stage / "compact.onnx").unlink()
    (tmp_path / "elsewhere.onnx").rename(stage / "compact.onnx")
    stage.rename(tmp_path / "stage")
    stage.symlink_to(tmp_path / "stage")
    assert f"lies outside {copied_run}; files of the run" in refused(capsys, here, "publish", copied_run, here)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result["compact"].update(path="../../outside.onnx"), "lies outside"),
        (lambda result: result["compact"].update(path="/etc/hostname"), "lies outside"),
        (lambda result: result["compact"].update(path=7), "its result does not fit"),
        (lambda result: result.clear(), "its result does not fit"),
    ],
)
def test_a_record_sealed_by_somebody_else_leads_nowhere(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    path, here = copied_run / "50-simplify" / "stage.json", tmp_path / "models"
    record = json.loads(path.read_text())
    change(record["result"])
    record["seal"] = seal_of(record)
    path.write_text(json.dumps(record))
    shutil.copy(copied_run / "50-simplify" / "dense.onnx", tmp_path / "outside.onnx")
    assert message in refused(capsys, here, "publish", copied_run, here)


def test_a_name_that_is_a_path_becomes_one_that_is_none(copied_run: Path, tmp_path: Path) -> None:
    path = copied_run / "config.yaml"
    document = YAML(typ="safe").load(path.read_text())
    path.write_text(yaml.dump({**document, "name": "../../etc/x y"}))
    before = set(tmp_path.iterdir())
    code = call("publish", copied_run, tmp_path / "models")
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "models"}
    if code == 0:
        assert all("/" not in name and ".." not in Path(name).parts for name in models(tmp_path / "models"))


def test_data_that_changed_since_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], copied_run: Path) -> None:
    """Its class names and samples would not be the network's."""
    path = copied_run / "config.yaml"
    document = YAML(typ="safe").load(path.read_text())
    arrays_ = np.random.default_rng(0).random((2, 40, 8, 8)).astype(np.float32)
    labels = np.arange(40) % 10
    np.savez(tmp_path / "own.npz", x_train=arrays_[0], y_train=labels, x_test=arrays_[1], y_test=labels)
    document["data"]["source"] = f"npz:{tmp_path / 'own.npz'}"
    path.write_text(yaml.dump(document))
    told_ = refused(capsys, tmp_path / "models", "publish", copied_run, tmp_path / "models")
    assert "changed since" in told_ and "bring it back" in told_
