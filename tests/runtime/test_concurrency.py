"""Sessions under load: every stream runs, throughput is counted over all, and errors of a stream arrive."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backend import open_session
from runtime.concurrency import under_load
from runtime.errors import UserError
from runtime.feeds import random_feeds
from tests.runtime.nets import write_onnx


class Sleeper:
    """A session whose launch takes `seconds`, of one thread at a time; sleeping sessions do not share a core."""

    name, backend, device, inputs, outputs = "sleeper", "fake", "cpu", (), ()
    settings: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, seconds: float, opened: list[Sleeper]) -> None:
        self.seconds, self.threads, self.closed, self.batch = seconds, set[int](), 0, 0
        opened.append(self)

    def bind(self, feeds: Any) -> None:
        self.batch = len(feeds["input"])

    def launch(self) -> None:
        self.threads.add(threading.get_ident())

    def wait(self) -> None:
        time.sleep(self.seconds)

    def fetch(self) -> Any:
        raise AssertionError("a copy inside the timed part")

    def close(self) -> None:
        self.closed += 1


def test_two_streams_do_twice_as_much() -> None:
    """4 images in 4 ms and in 2 ms a stream; sleeping takes a little longer than asked."""
    opened: list[Sleeper] = []
    feeds = [{"input": np.zeros((4, 1))}] * 2
    openers = [lambda: Sleeper(0.004, opened), lambda: Sleeper(0.002, opened)]
    one, two = (under_load(openers, feeds, count, rounds=5, window_s=0.02) for count in (1, 2))
    assert 500 < one.loads[0].images_per_s <= 1000
    assert 1.5 < two.loads[0].images_per_s / one.loads[0].images_per_s < 2.5
    assert 1.4 < two.speedups[0].ratio < 2.6
    assert one.loads[0].p50_ms >= 4.0 and two.loads[1].n > two.loads[0].n
    assert [session.closed for session in opened] == [1] * 6


def test_real_sessions(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    with_feed = open_session(path, device="cpu", threads=1)
    feed = random_feeds(with_feed, 2)
    with_feed.close()
    told = under_load([lambda: open_session(path, device="cpu", threads=1)], [feed], 2, rounds=5, window_s=0.005)
    assert told.streams == 2 and told.speedups == ()
    assert told.loads[0].images_per_s > 100
    assert 0 < told.loads[0].p50_ms <= told.loads[0].p95_ms <= told.loads[0].p99_ms


def test_an_error_of_one_stream_arrives() -> None:
    class Broken(Sleeper):
        def launch(self) -> None:
            raise UserError("it broke", "a run", "mend it")

    opened: list[Sleeper] = []
    made = iter([Sleeper, Broken])
    with pytest.raises(UserError, match="it broke"):
        under_load([lambda: next(made)(0.001, opened)], [{"input": np.zeros((1, 1))}], 2, rounds=5, window_s=0.01)
    assert [session.closed for session in opened] == [1, 1]
