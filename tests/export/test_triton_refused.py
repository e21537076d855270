"""What does not fit is not published: names, links, hashes, requests, engines of another library."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.serving.files import NAME, Model, safe_name
from runtime.errors import UserError
from tests.export.graphs import conv_net, images
from tests.export.repositories import LABELS, config_of, engine_model, onnx_model, publish, write_run
from tests.export.small_engines import build, needs_rtx

BAD_NAMES = ("", ".", "..", "../up", "a/b", "/abs", ".hidden", "a b", "a\nb", "a\x00", "é", "x" * 129)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


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
