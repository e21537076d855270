"""`demport ask --during-publish` against a scripted server: what is lost, what is wrong, which release answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.serving.recorded import Exchange, write_recorded
from export.serving.release_index import PublishedModel, write_index
from pipeline import cli
from pipeline.commands import swap
from pipeline.commands.ask import Order
from runtime.errors import UserError
from tests.scripted_server import Script, scripted

OLD, NEW = [1.0, -4.0], [2.0, -4.0]


def release(folder: Path, logits: list[float], serial: int, request: float = 0.0) -> None:
    """A network `net` with one recorded request and the answer `logits`."""
    (folder / "net").mkdir(parents=True, exist_ok=True)
    inputs = {"input": np.full((1, 2), request, np.float32)}
    exchange = Exchange(inputs, {"logits": np.array([logits], np.float32)})
    write_recorded(folder / "net", "net", [exchange], batched=True)
    model = PublishedModel(name="net", platform="onnxruntime_onnx", max_batch_size=1, sha256={})
    write_index(folder, "triton", serial, [model])


def body(logits: list[float]) -> bytes:
    outputs = [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": logits}]
    return json.dumps({"outputs": outputs}).encode()


@pytest.fixture
def server() -> Iterator[Script]:
    with scripted() as script:
        script.body = body(OLD)
        yield script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    release(tmp_path / "models", OLD, 1)
    return tmp_path / "models"


def asked(server: Script, folder: Path, meanwhile: Callable[[], None]) -> dict[str, Any]:
    """The document, while `meanwhile` happens once the clients ask."""
    thread = threading.Thread(target=meanwhile)
    try:
        return swap.ask_during_publish(Order(server.url, folder), 0.2, lambda _: thread.start())
    finally:
        if thread.ident is not None:
            thread.join()


def publish(server: Script, folder: Path, between: bytes | None = None, status: int = 200) -> Callable[[], None]:
    """Puts the second release in place; the server answers `between` with `status` before it answers the new one."""

    def run() -> None:
        release(folder, NEW, 2)
        time.sleep(0.1)
        if between is not None:
            server.body, server.status = between, status
            time.sleep(0.1)
        server.body, server.status = body(NEW), 200

    return run


def test_a_swap_without_a_loss(server: Script, folder: Path) -> None:
    document = asked(server, folder, publish(server, folder))
    assert (document["status"], document["renewed"], document["lost"], document["wrong"]) == ("pass", True, 0, 0)
    for phase in swap.PHASES:
        assert document[phase]["answers"] > 0
        assert 0 < document[phase]["p50_ms"] <= document[phase]["p99_ms"]


def test_wrong_and_lost_answers_are_counted(server: Script, folder: Path) -> None:
    wrong = asked(server, folder, publish(server, folder, body([9.0, 9.0])))
    assert wrong["status"] == "fail" and wrong["wrong"] > 0 and wrong["lost"] == 0 and wrong["renewed"]
    server.body = body(OLD)
    release(folder, OLD, 3)
    lost = asked(server, folder, publish(server, folder, b'{"error": "unloading"}', 503))
    assert lost["status"] == "fail" and lost["lost"] > 0 and lost["wrong"] == 0
    assert "unloading" in lost["first_loss"]


def test_a_release_that_never_answers(server: Script, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "ANSWER_S", 0.2)
    document = asked(server, folder, lambda: release(folder, NEW, 2))
    assert (document["status"], document["renewed"], document["lost"]) == ("fail", False, 0)
    assert document["during"]["answers"] > 0


def test_what_cannot_be_compared_is_refused(server: Script, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"records other requests; .*; publish a run on the same data"):
        asked(server, folder, lambda: release(folder, NEW, 2, request=1.0))
    monkeypatch.setattr(swap, "PUBLISH_S", 0.2)
    with pytest.raises(UserError, match=r"no other release in .*; one within 0\.2 s; publish to it"):
        asked(server, folder, lambda: None)


def test_the_command_refuses_an_image_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "http://127.0.0.1:9", str(folder), "--during-publish"]
    assert cli.command_line([*words, "--image", "x.png"]) == 2
    assert "--image with --during-publish; one of them" in capsys.readouterr().err
    assert cli.command_line([*words, "--seconds", "nan"]) == 2
    assert "Invalid value for '--seconds'" in capsys.readouterr().err
