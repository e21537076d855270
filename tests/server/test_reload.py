"""A server under load takes a new release, and its rollback, without one failed or wrong answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import onnxruntime
import pytest

from export.releases import rollback
from export.served import Model, Sources
from export.triton import Content, publish
from tests.export.graphs import conv_net, images
from tests.server.clients import Load
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


def reload(server: Running) -> None:
    with urlopen(Request(f"{server.url}/v2/repository/models/net/load", data=b"{}"), timeout=60) as answer:
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
        load = Load(server, "net", images(32), accepted)
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
        load = Load(server, "net", images(32), [first])
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
