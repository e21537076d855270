"""Several sessions of a network at once, as a server runs them: throughput and latency under load, networks in turn.

A window runs `streams` sessions of one network, each in a thread of its own, all started together, for `window_s`
seconds; windows of the networks take turns (A B B A). Throughput is images finished over the time until the last thread
is done, and the ratio of throughputs has the same block bootstrap as a latency (statistics.py).

Sessions of torch share Python's interpreter with each other, as the threads of any Python server do; each stream has
the session's threads for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import inf

import numpy as np

from runtime.backends import Array, Session
from runtime.errors import UserError
from runtime.measure.latency import Speedup, speedup

Opener = Callable[[], Session]


@dataclass(frozen=True)
class Load:
    """One network under load: latencies in milliseconds of a launch as its caller sees it, over all `n` launches."""

    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    n: int


@dataclass(frozen=True)
class Concurrency:
    """`speedups[i]`: throughput of `loads[i + 1]` over that of `loads[0]`."""

    streams: int
    loads: tuple[Load, ...]
    speedups: tuple[Speedup, ...]


def under_load(
    openers: Sequence[Opener],
    feeds: Sequence[Mapping[str, Array]],
    streams: int,
    *,
    rounds: int = 8,
    window_s: float = 0.1,
    limit_s: float = inf,
) -> Concurrency:
    """`openers[i]` opens a session of network i, which is fed `feeds[i]`; all of them are open at once.

    A window lasts `window_s`, or two launches where those take longer. Raises what a session raises, and UserError
    after the warm-up where by its length the rounds would take longer than `limit_s`.
    """
    assert rounds >= 5, "fewer make no interval"
    batches = [len(next(iter(feed.values()))) for feed in feeds]
    with ExitStack() as stack:
        opened: list[list[Session]] = []
        for opener in openers:
            opened.append([stack.enter_context(closing(opener())) for _ in range(streams)])
        pool = stack.enter_context(ThreadPoolExecutor(streams))
        seconds = np.empty((rounds, len(openers), 2))  # an image
        taken: list[list[float]] = [[] for _ in openers]
        for _ in range(2):  # not counted
            begin = time.perf_counter()
            for sessions, feed in zip(opened, feeds, strict=True):
                _window(pool, sessions, feed, window_s / 2)
        _demand_time(2 * rounds * (time.perf_counter() - begin), limit_s, f"{rounds} rounds of {streams} at once")
        for number in range(rounds):
            order = [(number + step) % len(openers) for step in range(len(openers))]
            for place, which in enumerate(order + order[::-1]):
                times, whole = _window(pool, opened[which], feeds[which], window_s)
                seconds[number, which, place >= len(order)] = whole / (len(times) * batches[which])
                taken[which] += times
    loads = tuple(_load(seconds[:, i], times) for i, times in enumerate(taken))
    return Concurrency(streams, loads, tuple(speedup(seconds[:, 0], seconds[:, i]) for i in range(1, len(openers))))


def _demand_time(expected_s: float, limit_s: float, what: str) -> None:
    if expected_s > limit_s:
        raise UserError(
            f"{what} would take {expected_s:.0f} s, at most {limit_s:g} s are allowed",
            "a network that takes less",
            "allow more time, or take a smaller batch",
        )


def _window(
    pool: ThreadPoolExecutor, sessions: Sequence[Session], feed: Mapping[str, Array], window_s: float
) -> tuple[list[float], float]:
    """Seconds of every launch, and of the window."""
    start = threading.Barrier(len(sessions))

    def stream(session: Session) -> tuple[list[float], float, float]:
        try:
            session.bind(feed)  # the thread that binds owns the session
            session.launch()
            session.wait()
        except BaseException:
            start.abort()
            raise
        start.wait()
        times: list[float] = []
        now = begin = time.perf_counter()
        while now - begin < window_s or not times:
            session.launch()
            session.wait()
            times.append(time.perf_counter() - now)
            now += times[-1]
        return times, begin, now

    futures = [pool.submit(stream, session) for session in sessions]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    done = [future.result() for future in futures]
    whole = max(end for _, _, end in done) - min(begin for _, begin, _ in done)
    return [one for times, _, _ in done for one in times], whole


def _load(seconds_an_image: Array, times: Sequence[float]) -> Load:
    p50, p95, p99 = (float(1000 * value) for value in np.percentile(times, [50, 95, 99]))
    return Load(float(1 / np.median(seconds_an_image)), p50, p95, p99, len(times))
