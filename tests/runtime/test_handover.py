"""How long cores take to hand each other data."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import conditions, handover, latency
from runtime.conditions import Watch
from runtime.handover import handover_us

needs_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
)


@needs_cores
def test_a_copy_takes_some_time_and_the_thread_may_run_where_it_could_before() -> None:
    before = os.sched_getaffinity(0)
    told = handover_us()
    assert told is not None and 0.5 < told < 10_000
    assert os.sched_getaffinity(0) == before


@needs_cores
def test_the_data_is_written_on_one_core_and_copied_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is timed alone: by this clock it takes 3 us, whatever goes before."""
    written: list[set[int]] = []
    copied: list[set[int]] = []
    now = 0
    first, second, *_ = sorted(os.sched_getaffinity(0))

    class Buffer:
        def fill(self, _: int) -> None:
            nonlocal now
            written.append(os.sched_getaffinity(0))
            now += 500_000

    def copyto(target: Any, source: Any) -> None:
        nonlocal now
        assert target is not source and len(written) == len(copied) + 1
        copied.append(os.sched_getaffinity(0))
        now += 3000

    monkeypatch.setattr(handover, "np", SimpleNamespace(zeros=lambda *_: Buffer(), uint8=None, copyto=copyto))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now)
    assert handover_us() == 3.0
    assert (written, copied) == ([{second}] * 20, [{first}] * 20)


@needs_cores
def test_the_thread_is_let_go_when_the_copy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    before = os.sched_getaffinity(0)
    monkeypatch.setattr(handover, "np", SimpleNamespace(zeros=np.zeros, uint8=np.uint8, copyto=fails))
    with pytest.raises(MemoryError):
        handover_us()
    assert os.sched_getaffinity(0) == before


def test_one_core_hands_nothing_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "usable", lambda: [0])
    assert handover_us() is None
    monkeypatch.setattr(handover, "usable", lambda: [0, 1])
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert handover_us() is None


@pytest.mark.parametrize(("times", "median"), [([4.0, 9.0, 5.0], 5.0), ([None, 4.0, None], 4.0), ([None] * 3, None)])
def test_a_watch_tells_the_median(
    times: list[float | None], median: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, now = list(times), 100.0
    monkeypatch.setattr(conditions, "handover_us", lambda: left.pop(0))
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Watch(gpus=False, handovers=True)
    for _ in times[1:]:
        now += 1.5
        watch.look()
        watch.look()
    assert watch.document()["handover_us"] == median
    assert left == []
    assert Watch(gpus=False).document()["handover_us"] is None


@pytest.mark.parametrize(("threads", "looks"), [((1, 1), False), ((1, 2), True), ((None, 1), True)])
def test_handovers_are_watched_where_a_session_has_several_threads(
    threads: tuple[int | None, ...], looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, bool]] = []
    monkeypatch.setattr(latency, "Watch", lambda **options: told.append(options))
    sessions: list[Any] = [SimpleNamespace(device="cpu", settings={"threads": one}) for one in threads]
    latency.watch_for(sessions)
    assert told == [{"gpus": False, "handovers": looks}]
