"""Latency of several sessions compared in one process, taken in turn, with an interval on the ratio of their medians.

**Sample**: one launch that is not timed, because the session before left other data in the caches and other threads
awake, then the timed launch and wait; of a network faster than 50 us so many launches that they last as long, and
their mean. Copies are in bind and fetch and not timed.
**Block**: every session once in order and once in reverse (A B B A), and the order turns by one from block to block; so
a machine that slowly changes speed changes it for all alike.
**Warm-up**: rounds of one sample each until, for every session, the median of 5 rounds is within 5 % of that of the 5
before; at least 15 rounds, but no longer than a quarter of the time limit.
**Length**: at least `min_blocks`, then until the half-width of every ratio's interval is at most `precision` of the
ratio, or the time limit, or 3,000 blocks. At the time limit it stops even before `min_blocks`, and then the verdict is
"not distinguishable".
**End to end**: the same with the copies in and out inside the timed part, as a comparison of its own (`end_to_end`).
**Interval**: 95 %, block bootstrap of the ratio of p50 (bootstrap.py).
**Verdict**: "faster" ("slower") when the whole interval lies more than MIN_EFFECT on that side of 1: two sessions of
one file differ by up to about that much for as long as they live, by where their memory lies, and no interval sees it.
`detectable` is the smallest speedup that samples as noisy as these would have called "faster" in 80 of 100 comparisons.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, cast

import numpy as np

from runtime.backend import Array, Session
from runtime.bootstrap import RESAMPLES, ratio_interval, run_length
from runtime.conditions import Watch

Verdict = Literal["faster", "not distinguishable", "slower"]
Clock = Callable[[], int]

MIN_EFFECT = 0.03
MAX_BLOCKS = 3000
MAX_SAMPLES = 2000  # samples a report carries
_SHORTEST_NS = 50_000  # a timed sample lasts at least this long
_WINDOW = 5  # rounds
_STABLE = 0.05
_FEWEST_BLOCKS = 5  # fewer make no interval
_POWER80 = (
    1 + 0.8416212335729143 / 1.959963984540054
)  # in half-widths: the 80 % point of the normal on top of the 97.5 % one


@dataclass(frozen=True)
class Latency:
    """Of one session in milliseconds per launch: n samples of `repeats` launches each.

    `images_per_s` is the batch (the first axis of the first input) over the mean; None where nothing is fed.
    `samples_ms` are in the order of time, at most MAX_SAMPLES of them, evenly spaced; the figures use all.
    """

    name: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    best_ms: float
    images_per_s: float | None
    n: int
    repeats: int
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class Speedup:
    """p50 of the first session over p50 of a later one (2.0: the later one takes half the time), and its 95 %
    interval. `detectable`: the smallest ratio that would probably have been found."""

    ratio: float
    ci95: tuple[float, float]
    verdict: Verdict
    detectable: float


@dataclass(frozen=True)
class Comparison:
    """`speedups[i]` is of `models[i + 1]` against `models[0]`. `protocol` says how it was measured and what ended it,
    `settings` what each session ran with, `conditions` how busy the machine was before and after."""

    models: tuple[Latency, ...]
    speedups: tuple[Speedup, ...]
    protocol: Mapping[str, Any]
    settings: tuple[Mapping[str, Any], ...]
    conditions: Mapping[str, Any]


def compare(
    sessions: Sequence[Session],
    feeds: Sequence[Mapping[str, Array]],
    *,
    min_blocks: int = 30,
    time_limit_s: float = 20.0,
    precision: float = 0.01,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
) -> Comparison:
    """Times the sessions on their feeds (`feeds[i]` is bound to `sessions[i]`). `clock` counts nanoseconds."""
    assert len(sessions) == len(feeds) > 0
    watch = Watch(gpus=any(session.device != "cpu" for session in sessions))
    deadline = clock() + int(time_limit_s * 1e9)
    for session, feed in zip(sessions, feeds, strict=True):
        session.bind(feed)
    with _without_collector():
        repeats, rounds = _warm_up(sessions, clock, clock() + (deadline - clock()) // 4)
        samples, stopped = _blocks(sessions, repeats, min_blocks, precision, seed, deadline, clock, watch)
    enough = len(samples) >= min_blocks
    return Comparison(
        tuple(_latency(session, samples[:, i], repeats[i], feeds[i]) for i, session in enumerate(sessions)),
        tuple(speedup(samples[:, 0], samples[:, i], enough=enough, seed=seed) for i in range(1, len(sessions))),
        {
            "order": "ABBA, turning",
            "blocks": len(samples),
            "warmup_rounds": rounds,
            "stopped": stopped,
            "interval": "circular block bootstrap of the p50 ratio, 95 %",
            "resamples": RESAMPLES,
            "run_length": run_length(len(samples)),
            "seed": seed,
            "min_effect": MIN_EFFECT,
            "min_blocks": min_blocks,
            "time_limit_s": time_limit_s,
            "precision": precision,
        },
        tuple({"backend": session.backend, "device": session.device, **session.settings} for session in sessions),
        watch.document(),
    )


def end_to_end(sessions: Sequence[Session], feeds: Sequence[Mapping[str, Array]], **options: Any) -> Comparison:
    """`compare` with the copies of inputs and outputs inside the timed part: what a caller waits for. Options as
    there."""
    return compare([cast(Session, _WithCopies(*pair)) for pair in zip(sessions, feeds, strict=True)], feeds, **options)


class _WithCopies:
    """A session whose launch copies the inputs in first and whose wait copies the outputs back."""

    def __init__(self, session: Session, feed: Mapping[str, Array]) -> None:
        self._session, self._feed = session, feed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launch(self) -> None:
        self._session.bind(self._feed)
        self._session.launch()

    def wait(self) -> None:
        self._session.wait()
        self._session.fetch()


def speedup(first: Array, other: Array, *, enough: bool = True, seed: int = 0) -> Speedup:
    """Of samples (blocks, samples a block) taken block by block in turn; `enough` False withholds the verdict."""
    ratio, low, high = ratio_interval(first, other, seed=seed)
    verdict: Verdict = "not distinguishable"
    if enough and low > 1 + MIN_EFFECT:
        verdict = "faster"
    elif enough and high < 1 / (1 + MIN_EFFECT):
        verdict = "slower"
    return Speedup(ratio, (low, high), verdict, (1 + MIN_EFFECT) * max(ratio / low, high / ratio) ** _POWER80)


def _sample(session: Session, repeats: int, clock: Clock) -> float:
    """Nanoseconds a launch."""
    session.launch()
    session.wait()
    start = clock()
    for _ in range(repeats):
        session.launch()
        session.wait()
    return (clock() - start) / repeats


def _warm_up(sessions: Sequence[Session], clock: Clock, deadline: int) -> tuple[list[int], int]:
    """Launches a sample of each session, and the rounds it took until they were stable."""
    shortest = [min(_sample(session, 1, clock) for _ in range(3)) for session in sessions]
    repeats = [max(1, ceil(_SHORTEST_NS / max(single, 1.0))) for single in shortest]
    rounds: list[list[float]] = []
    while len(rounds) < 3 * _WINDOW or not _stable(np.array(rounds[-2 * _WINDOW :])):
        if clock() > deadline and rounds:
            break
        rounds.append([_sample(session, count, clock) for session, count in zip(sessions, repeats, strict=True)])
    return repeats, len(rounds)


def _stable(rounds: Array) -> bool:
    """rounds: (2 windows, sessions)."""
    before, now = np.median(rounds[:_WINDOW], axis=0), np.median(rounds[_WINDOW:], axis=0)
    return bool((np.abs(now - before) <= _STABLE * before).all())


def _blocks(
    sessions: Sequence[Session],
    repeats: Sequence[int],
    min_blocks: int,
    precision: float,
    seed: int,
    deadline: int,
    clock: Clock,
    watch: Watch,
) -> tuple[Array, str]:
    """Samples in nanoseconds, (blocks, sessions, 2), and what ended them."""
    taken: list[list[list[float]]] = []
    next_look = min_blocks
    while True:
        taken.append(_block(sessions, repeats, len(taken), clock))
        watch.look()
        if len(taken) >= next_look:
            next_look = ceil(1.5 * len(taken))
            if _narrow(np.array(taken), precision, seed):
                return np.array(taken), "interval narrow enough"
        if len(taken) >= max(MAX_BLOCKS, min_blocks):
            return np.array(taken), "most blocks taken"
        if clock() > deadline and len(taken) >= _FEWEST_BLOCKS:
            early = f" after {len(taken)} of {min_blocks} blocks" if len(taken) < min_blocks else ""
            return np.array(taken), "time limit" + early


def _block(sessions: Sequence[Session], repeats: Sequence[int], index: int, clock: Clock) -> list[list[float]]:
    """Two samples of each session: there and back, starting with another session from block to block."""
    count = len(sessions)
    order = [(index + step) % count for step in range(count)]
    samples: list[list[float]] = [[] for _ in sessions]
    for i in order + order[::-1]:
        samples[i].append(_sample(sessions[i], repeats[i], clock))
    return samples


def _narrow(samples: Array, precision: float, seed: int) -> bool:
    for i in range(1, samples.shape[1]):
        ratio, low, high = ratio_interval(samples[:, 0], samples[:, i], seed=seed)
        if (high - low) / 2 > precision * ratio:
            return False
    return True


def _latency(session: Session, samples: Array, repeats: int, feed: Mapping[str, Array]) -> Latency:
    """samples: nanoseconds (blocks, 2)."""
    ms = samples.ravel() / 1e6
    p50, p95, p99 = (float(value) for value in np.percentile(ms, [50, 95, 99]))
    batch = next((len(array) for array in feed.values()), None)
    kept = ms[np.linspace(0, len(ms) - 1, min(len(ms), MAX_SAMPLES)).round().astype(int)]
    return Latency(
        session.name, p50, p95, p99, float(ms.mean()), float(ms.min()),
        None if batch is None else 1000 * batch / float(ms.mean()), len(ms), repeats,
        tuple(float(value) for value in kept.round(6)),
    )  # fmt: skip


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's garbage collector would land in single samples."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
