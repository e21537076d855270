"""Sessions under load: every stream runs, throughput is counted over all, and errors of a stream arrive."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.backends import open_session
from runtime.backends.feeds import random_feeds
from runtime.backends.torch import TorchSession, image_inputs
from runtime.errors import UserError
from runtime.measure.load import under_load
from tests.runtime.nets import SHAPE, Net, images, write_onnx


class Sleeper:
    """A session whose launch takes `seconds`, of one thread at a time; sleeping sessions do not share a core."""

    name, backend, device, inputs, outputs = "sleeper", "fake", "cpu", (), ()
    settings: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, seconds: float, opened: list[Sleeper]) -> None:
        self.seconds, self.threads, self.closed, self.batch, self.launches = seconds, set[int](), 0, 0, 0
        opened.append(self)

    def bind(self, feeds: Any) -> None:
        self.batch = len(feeds["input"])

    def launch(self) -> None:
        self.threads.add(threading.get_ident())
        self.launches += 1

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


def test_a_network_that_would_take_too_long_says_so() -> None:
    """It stops after the two rounds that are not counted: a window of 50 ms holds a launch of 60 ms and the one before
    it."""
    opened: list[Sleeper] = []
    feeds = [{"input": np.zeros((1, 1))}] * 2
    with pytest.raises(
        UserError, match=r"5 rounds of 2 at once would take \d+ s, at most 1.5 s are allowed; "
    ) as caught:
        under_load([lambda: Sleeper(0.06, opened)] * 2, feeds, 2, rounds=5, limit_s=1.5)
    assert [session.launches for session in opened] == [4] * 4 and "smaller batch" in caught.value.remedy
    assert [session.closed for session in opened] == [1] * 4


def test_sessions_are_closed_where_another_does_not_open() -> None:
    def refuse() -> Sleeper:
        raise UserError("no memory left", "room for one more", "run fewer")

    opened: list[Sleeper] = []
    with pytest.raises(UserError, match="no memory left"):
        under_load([lambda: refuse() if opened else Sleeper(0.001, opened)], [{"input": np.zeros((1, 1))}], 2)
    assert [session.closed for session in opened] == [1]


def test_streams_of_torch_share_no_module_and_have_their_threads_each() -> None:
    """Torch's number of threads is the calling thread's; a session sets it where it runs, and all is put back."""
    seen: set[tuple[int, int, int]] = set()

    class Spy(Net):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.add((threading.get_ident(), id(self), torch.get_num_threads()))
            return super().forward(batch)

    before = torch.get_num_threads()
    asked = before + 1
    module = Spy()
    told = under_load(
        [lambda: TorchSession(module, image_inputs(SHAPE), device="cpu", threads=asked)] * 2,
        [{"input": images(4)}] * 2, 2, rounds=5, window_s=0.005,
    )  # fmt: skip
    assert told.loads[0].n >= 10 and told.loads[1].images_per_s > 0
    assert {count for _, _, count in seen} == {asked}
    assert len({own for _, own, _ in seen}) == 4 and id(module) not in {own for _, own, _ in seen}
    assert len({thread for thread, _, _ in seen} - {threading.get_ident()}) == 2
    assert torch.get_num_threads() == before
