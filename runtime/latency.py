"""Latency of several sessions compared in one process, taken in turn, with an interval on the ratio of their medians.

Samples, blocks and what warms a session up: sampling.py. The warm-up takes a quarter of the time limit at most.
**Length**: at least `min_blocks`, then until the half-width of every ratio's interval is at most `precision` of the
ratio, or the time limit, or 3,000 blocks. At the time limit it stops even before `min_blocks`, and then the verdict is
"not distinguishable".
**End to end**: the same with the copies in and out inside the timed part (`with_copies`).
**Interval**: 95 %, block bootstrap of the ratio of p50 (bootstrap.py). It is of these sessions: opened anew they take
other times, which `openings.compare_openings` measures too, and figures that others rely on come from there.
**Verdict**: "faster" ("slower") when the whole interval lies more than MIN_EFFECT on that side of 1.
`detectable` is the smallest speedup that samples as noisy as these would have called "faster" in 80 of 100 comparisons.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, cast

import numpy as np

from runtime.backend import Array, Session
from runtime.bootstrap import RESAMPLES, ratio_interval, run_length
from runtime.collector import collector_paused
from runtime.conditions import Watch
from runtime.sampling import Clock, block, launches_a_sample, warm_up

Verdict = Literal["faster", "not distinguishable", "slower"]

MIN_EFFECT = 0.03
MAX_BLOCKS = 3000
MAX_SAMPLES = 2000  # samples a report carries
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
    watch = watch_for(sessions)
    deadline = clock() + int(time_limit_s * 1e9)
    for session, feed in zip(sessions, feeds, strict=True):
        session.bind(feed)
    with collector_paused():
        repeats = launches_a_sample(sessions, clock)
        rounds = warm_up(sessions, repeats, clock, clock() + (deadline - clock()) // 4)
        samples, stopped = _blocks(sessions, repeats, min_blocks, precision, seed, deadline, clock, watch)
    enough, protocol = len(samples) >= min_blocks, {"blocks": len(samples), "warmup_rounds": rounds, "stopped": stopped}
    asked = {"min_blocks": min_blocks, "time_limit_s": time_limit_s, "precision": precision}
    settings = tuple(settings_of(session) for session in sessions)
    names = [session.name for session in sessions]
    return concluded(names, samples, repeats, feeds, enough, seed, {**protocol, **asked}, settings, watch.document())


def watch_for(sessions: Sequence[Session]) -> Watch:
    """GPUs where one runs on them, handovers between cores where one has several threads."""
    return Watch(
        gpus=any(session.device != "cpu" for session in sessions),
        handovers=any(session.settings.get("threads", 1) != 1 for session in sessions),
    )


def settings_of(session: Session) -> dict[str, Any]:
    """What a comparison tells of a session."""
    return {"backend": session.backend, "device": session.device, **session.settings}


def concluded(
    names: Sequence[str],
    samples: Array,
    repeats: Sequence[int],
    feeds: Sequence[Mapping[str, Array]],
    enough: bool,
    seed: int,
    protocol: Mapping[str, Any],
    settings: tuple[Mapping[str, Any], ...],
    conditions: Mapping[str, Any],
) -> Comparison:
    """The figures of samples in nanoseconds, (rows, sessions, samples a row): rows, in the order of time, are what the
    bootstrap draws; `enough` False withholds the verdicts."""
    count = range(len(names))
    told = {
        "order": "ABBA, turning",
        **protocol,
        "interval": "circular block bootstrap of the p50 ratio, 95 %",
        "resamples": RESAMPLES,
        "run_length": run_length(len(samples)),
        "seed": seed,
        "min_effect": MIN_EFFECT,
    }
    return Comparison(
        tuple(_latency(names[i], samples[:, i], repeats[i], feeds[i]) for i in count),
        tuple(speedup(samples[:, 0], samples[:, i], enough=enough, seed=seed) for i in count[1:]),
        told,
        settings,
        conditions,
    )


def with_copies(session: Session, feed: Mapping[str, Array]) -> Session:
    """The session with its copies inside launch and wait."""
    return cast(Session, _WithCopies(session, feed))


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
        taken.append(block(sessions, repeats, len(taken), clock))
        watch.look()
        if len(taken) >= next_look:
            next_look = ceil(1.5 * len(taken))
            if narrow(np.array(taken), precision, seed):
                return np.array(taken), "interval narrow enough"
        if len(taken) >= max(MAX_BLOCKS, min_blocks):
            return np.array(taken), "most blocks taken"
        if clock() > deadline and len(taken) >= _FEWEST_BLOCKS:
            early = f" after {len(taken)} of {min_blocks} blocks" if len(taken) < min_blocks else ""
            return np.array(taken), "time limit" + early


def narrow(samples: Array, precision: float, seed: int) -> bool:
    """Whether the half-width of every ratio's interval is at most `precision` of it; samples: (rows, sessions, n)."""
    for i in range(1, samples.shape[1]):
        ratio, low, high = ratio_interval(samples[:, 0], samples[:, i], seed=seed)
        if (high - low) / 2 > precision * ratio:
            return False
    return True


def _latency(name: str, samples: Array, repeats: int, feed: Mapping[str, Array]) -> Latency:
    """samples: nanoseconds (blocks, 2)."""
    ms = samples.ravel() / 1e6
    p50, p95, p99 = (float(value) for value in np.percentile(ms, [50, 95, 99]))
    batch = next((len(array) for array in feed.values()), None)
    kept = ms[np.linspace(0, len(ms) - 1, min(len(ms), MAX_SAMPLES)).round().astype(int)]
    return Latency(
        name, p50, p95, p99, float(ms.mean()), float(ms.min()),
        None if batch is None else 1000 * batch / float(ms.mean()), len(ms), repeats,
        tuple(float(value) for value in kept.round(6)),
    )  # fmt: skip
