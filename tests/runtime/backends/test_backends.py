"""Opening files, and the guard that keeps a session in order and in one thread."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import backends as backend
from runtime.backends import Guard, open_session
from runtime.errors import UserError
from tests.runtime.nets import write_onnx


def test_an_onnx_file_opens_by_its_suffix(tmp_path: Path) -> None:
    session = runtime.open_session(str(write_onnx(tmp_path / "net.onnx")), device="cpu", threads=1)
    assert session.backend == "onnxruntime"
    assert session.name == "net.onnx"
    assert session.settings["threads"] == 1
    session.close()


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("absent.onnx", None, {}, "absent.onnx is no file"),
        ("net.tflite", b"", {}, "ends in '.tflite'; .onnx, .engine or .plan or .xml"),
        ("net.onnx", b"garbage", {}, "ONNX Runtime cannot load"),
        ("net.onnx", b"", {"device": "tpu"}, "unknown device 'tpu'; auto, cpu or cuda"),
        (
            "net.onnx",
            b"",
            {"backend": "tvm"},
            "unknown backend 'tvm'; one of onnxruntime, onnxruntime_tensorrt, onnxruntime_tensorrt_rtx, ",
        ),
        ("net.onnx", b"", {"threads": 0}, "0 threads; at least 1"),
    ],
)
def test_files_that_do_not_open(tmp_path: Path, name: str, content: bytes | None, options: Any, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_session(path, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("{", "is no JSON ("),
        ("[]", "is no JSON object"),
        ("{}", "names the flavour None"),
        ('{"flavour": "tvm"}', "names the flavour 'tvm'; tensorrt or tensorrt_rtx"),
    ],
)
def test_a_manifest_that_names_no_builder(tmp_path: Path, manifest: str, words: str) -> None:
    (tmp_path / "net.engine").write_bytes(b"plan")
    (tmp_path / "net.engine.json").write_text(manifest)
    with pytest.raises(UserError) as caught:
        open_session(tmp_path / "net.engine")
    assert words in caught.value.found + "; " + caught.value.expected
    assert "net.engine.json" in caught.value.found


def test_an_engine_is_opened_with_what_built_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.engine"
    path.write_bytes(b"plan")
    opened = []
    monkeypatch.setattr(backend, "import_module", lambda module: sys.modules[__name__])
    monkeypatch.setattr(
        sys.modules[__name__], "open_tensorrt", lambda *a, **k: opened.append("tensorrt"), raising=False
    )
    monkeypatch.setattr(sys.modules[__name__], "open_tensorrt_rtx", lambda *a, **k: opened.append("rtx"), raising=False)
    monkeypatch.setattr(backend, "find_spec", lambda name: name if name == "tensorrt_rtx" else None)
    open_session(path)
    (tmp_path / "net.engine.json").write_text(json.dumps({"flavour": "tensorrt"}))
    open_session(path)
    assert opened == ["rtx", "tensorrt"]
    (tmp_path / "net.engine.json").unlink()
    monkeypatch.setattr(backend, "find_spec", lambda name: name)
    with pytest.raises(
        UserError, match=r"no manifest net\.engine\.json beside it and both tensorrt and tensorrt_rtx are"
    ):
        open_session(path)
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="neither tensorrt nor tensorrt_rtx is installed"):
        open_session(path)


def test_two_threads_at_once_are_refused_while_one_is_at_work() -> None:
    guard = Guard("net")
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with guard("bind"):
            inside.set()
            go_on.wait(5)

    worker = threading.Thread(target=work)
    worker.start()
    assert inside.wait(5)
    for action in ("bind", "launch", "fetch", "close"):
        with (
            pytest.raises(UserError, match="session net is used from two threads; one thread at a time"),
            guard(action),
        ):
            raise AssertionError("let in")
    go_on.set()
    worker.join()
    with pytest.raises(UserError, match="two threads"), guard("launch"):  # the worker owns it
        raise AssertionError("let in")
    with guard("bind"):
        pass
    with guard("launch"):
        pass


def test_a_call_that_fails_takes_its_step_back() -> None:
    guard = Guard("net")
    with pytest.raises(ZeroDivisionError), guard("bind"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="launch on session net before bind"), guard("launch"):
        raise AssertionError("let in")
    with guard("bind"):
        pass
    with pytest.raises(ZeroDivisionError), guard("launch"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="fetch on session net before launch"), guard("fetch"):
        raise AssertionError("let in")


def test_nothing_heavy_is_imported_with_the_package() -> None:
    code = "import sys, runtime; print([m for m in ('numpy', 'torch', 'onnxruntime', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
