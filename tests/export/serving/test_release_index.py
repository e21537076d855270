"""demport.json is believed only where it is one, and a folder only where it holds what is listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.serving.release_index import MAX_BYTES, PublishedModel, read_index, verify_release, write_index
from runtime.errors import UserError

MODEL = PublishedModel(name="net", platform="onnxruntime_onnx", max_batch_size=8, sha256={"1": "a" * 64})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "model.onnx").write_bytes(b"graph")
    write_index(tmp_path, "triton", 7, [MODEL])
    return tmp_path


def test_it_is_read_back(folder: Path) -> None:
    index = verify_release(folder)
    assert (index.serial, index.kind, index.models) == (7, "triton", [MODEL])
    assert list(index.files) == ["net/1/model.onnx"]


HUGE = {"height": 1 << 20, "width": 1 << 20, "channels": 4, "dtype": "uint8", "high": 1.0}
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another schema": (lambda d: d.update(schema=2), "schema: Input should be 1"),
    "true is no number": (lambda d: d.update(serial=True), "serial: Input should be a valid integer"),
    "an unknown key": (lambda d: d.update(run="x"), "run: Extra inputs"),
    "no models": (lambda d: d.update(models=[]), "models: List should have at least 1"),
    "a name that is a path": (lambda d: d["models"][0].update(name="../x"), "models.0.name: String should match"),
    "a path upwards": (lambda d: d["files"].update({"../x": "a" * 64}), r"lists '\.\./x'; paths inside the folder"),
    "an absolute path": (lambda d: d["files"].update({"/etc/passwd": "a" * 64}), "lists '/etc/passwd'"),
    "an image that nothing holds": (
        lambda d: d["models"][0].update(image=HUGE),
        "models.0.image: Value error, an image of more than",
    ),
    "no hash": (lambda d: d["files"].update({"x": "a"}), "files.x: String should match"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_no_index_is_refused(folder: Path, case: str) -> None:
    change, told = CHANGES[case]
    document = json.loads((folder / "demport.json").read_text())
    change(document)
    (folder / "demport.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=told) as caught:
        read_index(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"serial": NaN}'])
def test_what_is_no_json_is_refused(folder: Path, raw: bytes) -> None:
    (folder / "demport.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"demport\.json") as caught:
        read_index(folder)
    assert caught.value.remedy == "publish it again"


def test_large_linked_and_missing_files_are_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "demport.json"
    path.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="over 16777216 bytes"):
        read_index(folder)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_index(folder)
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"cannot be read \(no plain file"):
        read_index(folder)
