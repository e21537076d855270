"""A server under load takes a new release, and its rollback, without one failed or wrong answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_digits

from export.serving.files import Model, Sources
from export.serving.releases import rollback
from export.serving.triton import Content, publish
from pipeline import cli
from tests.export.graphs import conv_net, images
from tests.server.clients import Load, Question
from tests.server.tritonserver import Running, tritonserver

pytestmark = pytest.mark.server
LABELS = ("a", "b", "c", "d", "e")


def release(root: Path, here: Path, scale: float, *, versions: int = 2) -> Any:
    """Publishes networks whose logits grow with `scale`; the logits of the version that answers."""
    made = {n: conv_net(root / f"{scale}.{n}.onnx", width=4 * n, scale=scale) for n in range(1, versions + 1)}
    publish(
        [Model("net", made)], here, Sources(root, {}, 16), content=Content(LABELS, images(4)), replace=here.exists()
    )
    session = onnxruntime.InferenceSession(str(made[versions]), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images(32)})[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def nothing(server: Running) -> None:
    """A server that polls needs no word."""


def reload(server: Running, model: str = "net") -> None:
    with urlopen(Request(f"{server.url}/v2/repository/models/{model}/load", data=b"{}"), timeout=60) as answer:
        assert answer.status == 200


MODES: dict[str, tuple[tuple[str, ...], Callable[[Running], None]]] = {
    "poll": (("--model-control-mode=poll", "--repository-poll-secs=1"), nothing),
    "explicit": (("--model-control-mode=explicit", "--load-model=*"), reload),
}


def wait_for(load: Load, release: int, seconds: float = 45) -> None:
    """Until that release answers."""
    deadline = time.monotonic() + seconds
    while load.last_release != release:
        assert time.monotonic() < deadline, f"release {release} does not answer; errors {load.errors[:3]}"
        time.sleep(0.05)


@pytest.mark.parametrize("mode", MODES)
def test_publish_and_rollback_under_load(root: Path, tmp_path: Path, mode: str) -> None:
    options, tell = MODES[mode]
    here = tmp_path / "models"
    accepted = [release(root, here, 1.0)]
    with tritonserver(here, *options) as server:
        load = Load(server, Question("net"), images(32), accepted)
        load.start(http=8, grpc=8)
        try:
            wait_for(load, 0)
            accepted.append(release(root, tmp_path / "other", 2.0))  # what is to come, for the comparison
            release(root, here, 2.0)
            tell(server)
            wait_for(load, 1)
            assert rollback(here)[0].serial == 1
            tell(server)
            wait_for(load, 0)
            time.sleep(2)
            assert load.last_release == 0
        finally:
            told = load.stop()
        assert (told.errors, told.wrong) == ([], 0)
        assert min(told.by_release[0], told.by_release[1]) > 20
        assert {name: state for name, (state, _) in server.states().items()} == {"net": "READY"}


def test_a_second_version_beside_the_first(root: Path, tmp_path: Path) -> None:
    """Version 1 alone, then 1 and 2: clients that name none move to 2, those that name 1 stay."""
    here = tmp_path / "models"
    first = release(root, here, 1.0, versions=1)
    with tritonserver(here, *MODES["poll"][0]) as server:
        load = Load(server, Question("net"), images(32), [first])
        load.start(http=4, grpc=4)
        try:
            wait_for(load, 0)
            load.accepted = [first, release(root, tmp_path / "other", 3.0)]
            release(root, here, 3.0)
            wait_for(load, 1)
            assert server.get("/v2/models/net")["versions"] == ["1", "2"]
        finally:
            told = load.stop()
        assert (told.errors, told.wrong) == ([], 0)
        assert told.by_release[0] > 20 and told.by_release[1] > 0


def classes(repository: Path, version: int, pixels: Any) -> Any:
    """(N, 2): the class and its probability, of the three graphs of the ensemble in a row, by ONNX Runtime."""
    x = pixels
    for name, file in (("tiny_pixels", "1"), ("tiny", str(version)), ("tiny_names", "1")):
        path = repository / name / file / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        answers = session.run(None, {session.get_inputs()[0].name: x})
        x = answers[0]
    return np.concatenate([np.array(answers[0]).astype(np.float32), answers[1]], axis=1)


@pytest.mark.parametrize("mode", MODES)
def test_the_commands_under_load(run: Path, tmp_path: Path, mode: str) -> None:
    """`demport publish`, `--replace` and `--rollback` while 16 clients send pixels to the ensemble and get names:
    compact answers, then dense, then compact.
    """
    options, _ = MODES[mode]
    here = tmp_path / "models"

    def publish_by_command(*words: str) -> None:
        assert cli.command_line(["publish", *words]) == 0

    publish_by_command(str(run), str(here))
    names = [path.name for path in here.iterdir() if path.is_dir()]
    drawn = load_digits().images[:400, :, :, None].astype(np.uint8)
    both = [classes(here, version, drawn) for version in (2, 1)]
    telling = np.abs(both[0] - both[1]).max(axis=1) > 0.01  # answers that tell which version gave them
    pixels, accepted = drawn[telling], [answers[telling] for answers in both]
    assert len(pixels) >= 32
    with tritonserver(here, *options) as server:
        question = Question("tiny_classify", "image", "UINT8", ("class", "probability"))
        load = Load(server, question, pixels, accepted)
        load.start(http=8, grpc=8)
        try:
            wait_for(load, 0)
            for words, answers in (
                ((str(run), str(here), "--replace", "--set", "publish.serve=dense"), 1),
                ((str(here), "--rollback"), 0),
            ):
                publish_by_command(*words)
                if mode == "explicit":
                    for name in names:
                        reload(server, name)
                wait_for(load, answers)
            time.sleep(2)
            assert load.last_release == 0
        finally:
            told = load.stop()
        assert (told.errors, told.wrong) == ([], 0)
        assert min(told.by_release[0], told.by_release[1]) > 20
        assert {state for state, _ in server.states().values()} == {"READY"}


@pytest.mark.parametrize("mode", MODES)
def test_ask_tells_how_a_users_server_took_a_release(
    run: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`demport ask --during-publish` while compact takes dense's place: nothing lost, nothing wrong, and the p99."""
    here = tmp_path / "models"
    compact = ["publish", str(run), str(here)]
    assert cli.command_line([*compact, "--set", "publish.serve=dense"]) == 0
    with tritonserver(here, *MODES[mode][0]) as server:

        def publish_now() -> None:
            time.sleep(6)
            assert cli.command_line([*compact, "--replace"]) == 0
            if mode == "explicit":
                for name in ("tiny", "tiny_fp16", "tiny_pixels", "tiny_names", "tiny_classify", "tiny_fp16_classify"):
                    reload(server, name)

        publisher = threading.Thread(target=publish_now)
        publisher.start()
        try:
            code = cli.command_line(
                ["ask", server.url, str(here), "--model", "tiny", "--during-publish", "--seconds", "3", "--wait", "60"]
            )
        finally:
            publisher.join()
    output = capsys.readouterr()
    assert code == 0, output.err
    (seen,) = (json.loads(line) for line in output.out.splitlines() if '"renewed"' in line)  # publish prints one too
    print(seen)
    assert (code, seen["status"], seen["renewed"], seen["lost"], seen["wrong"]) == (0, "pass", True, 0, 0)
    assert all(seen[phase]["answers"] > 20 and seen[phase]["p99_ms"] > 0 for phase in ("before", "during", "after"))
