"""Latency of several networks compared in one process: sessions opened anew, in turn, until the interval is narrow.

For a second or several a machine stands in a state that favours one network over another, and two sessions of one file
differ for as long as they live by where their memory lies. So an interval from one sitting is true of that sitting
alone. **Opening**: every session opened, the first one taking turns; bound, warmed up, so many blocks (samples.py),
closed. The first opening decides how many blocks: `min_blocks` over `openings`, more where opening takes longer than
that, fewer where the time limit would not let so many openings be.
**A single sitting** (`compare`) is the case of sessions that stay open: a block takes the place of an opening.
**In turn**: several comparisons go on opening by opening, so that each is spread over the time of all. Each lasts
LEAST_S or its time limit, whichever is less.
**Length**: at least `min_blocks` and `openings`, then until the half-width of every ratio's interval is at most
`precision` of the ratio, or `enough_s`, or the time limit (both of this comparison's own time), or `most` openings. At
the time limit it stops even before that, with 5 openings or more, and the verdict is "undecided".
**Interval**: 95 %, block bootstrap of the ratio of p50 (statistics.py), which draws openings as wholes.
**Verdict**: "faster" ("slower") when the whole interval lies more than MIN_EFFECT on that side of 1, "slightly" so when
it merely excludes 1. `detectable` is the smallest speedup that samples as noisy as these would have called "faster" in
80 of 100 comparisons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Literal

import numpy as np

from runtime.backends import Array, Session
from runtime.measure import collector_paused
from runtime.measure.conditions import Watch
from runtime.measure.samples import Clock, block, launches_a_sample, warm_up, warm_up_again, with_copies
from runtime.measure.statistics import RESAMPLES, ratio_interval, run_length

Verdict = Literal["faster", "slightly faster", "not distinguishable", "slightly slower", "slower", "undecided"]
Opener = Callable[[], Session]

MIN_EFFECT = 0.03
OPENINGS, MOST_OPENINGS, MOST_BLOCKS = 6, 300, 3000
LEAST_S = 20.0
MAX_SAMPLES = 2000  # samples a report carries
_FEWEST = 5  # fewer make no interval
_BLOCKS_OF_AN_OPENING = 50
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
    interval. `detectable`: the smallest ratio that would probably have been seen."""

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


class Running:
    """A comparison under way: `advance` until it has `stopped`."""

    def __init__(
        self,
        openers: Sequence[Opener],
        feeds: Sequence[Mapping[str, Array]],
        *,
        sitting: Sequence[Session] | None = None,
        openings: int = OPENINGS,
        most: int = MOST_OPENINGS,
        min_blocks: int = 30,
        time_limit_s: float = 20.0,
        precision: float = 0.01,
        seed: int = 0,
        copies: bool = False,
        enough_s: float = inf,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        """`openers[i]` opens a session of network i, which is fed `feeds[i]`; `sitting` are sessions that stay open
        instead. With `copies` the inputs' and the outputs' are inside the timed part: what a caller waits for."""
        assert len(feeds) == len(openers if sitting is None else sitting) > 0
        self._openers, self._feeds, self._sitting, self._copies = list(openers), list(feeds), sitting, copies
        self._clock, self._seed, self._most = clock, seed, most
        self._options = {"min_blocks": min_blocks, "time_limit_s": time_limit_s, "precision": precision}
        self._openings = min_blocks if sitting is not None else openings
        self._min_blocks, self._precision = min_blocks, precision
        self._limit_ns, self._enough_ns = int(time_limit_s * 1e9), enough_s * 1e9
        self._least_ns = 0.0 if sitting is not None else min(LEAST_S * 1e9, self._limit_ns)
        self._samples: list[Array] = []
        self._start, self._used_ns, self._next_look = clock(), 0, self._openings
        self.stopped = ""
        """What ended it; "" while it is under way."""

    def advance(self) -> None:
        """One more opening. Raises what an opener or a session raises."""
        begin = self._clock()
        with self._sessions() as sessions, collector_paused():
            if not self._samples:
                self._begin(sessions, begin)
            elif self._sitting is None:
                warm_up_again(sessions, self._repeats, self._clock)
            rows, number = [], len(self._samples)
            for index in range(self._blocks):
                rows.append(block(sessions, self._repeats, number + index, self._clock))
                self._watch.look()
        self._samples.append(np.array(rows).transpose(1, 0, 2).reshape(len(self._feeds), -1))
        self._used_ns += self._clock() - begin
        self.stopped = self._end()

    def comparison(self) -> Comparison:
        """The figures so far."""
        count, samples = range(len(self._feeds)), np.array(self._samples)
        protocol = {
            "order": "ABBA, turning",
            "openings": 1 if self._sitting is not None else len(samples),
            "blocks": len(samples) * self._blocks,
            "warmup_rounds": self._warmup_rounds,
            "stopped": self.stopped,
            **self._options,
            "interval": "circular block bootstrap of the p50 ratio, 95 %",
            "resamples": RESAMPLES,
            "run_length": run_length(len(samples)),
            "seed": self._seed,
            "min_effect": MIN_EFFECT,
        }
        enough = self._enough()
        return Comparison(
            tuple(_latency(self._names[i], samples[:, i], self._repeats[i], self._feeds[i]) for i in count),
            tuple(speedup(samples[:, 0], samples[:, i], enough=enough, seed=self._seed) for i in count[1:]),
            protocol,
            tuple(self._settings),
            self._watch.document(),
        )

    def last_ms(self) -> Array:
        """Samples of the last opening, (networks, n)."""
        samples: Array = self._samples[-1] / 1e6
        return samples

    def keep_only(self, networks: Sequence[int]) -> None:
        """Goes on with these alone."""
        of_each: tuple[list[Any], ...] = (self._openers, self._feeds, self._names, self._settings, self._repeats)
        for entries in of_each:
            entries[:] = [entries[i] for i in networks]
        self._samples = [samples[list(networks)] for samples in self._samples]

    def _enough(self) -> bool:
        return len(self._samples) >= self._openings and len(self._samples) * self._blocks >= self._min_blocks

    def _end(self) -> str:
        count, enough = len(self._samples), self._enough()
        spread = self._clock() - self._start >= self._least_ns
        if enough and spread and count >= self._next_look:
            self._next_look = ceil((1.2 if self._sitting is None else 1.5) * count)
            if _narrow(np.array(self._samples), self._precision, self._seed):
                return "interval narrow enough"
        if enough and spread and self._used_ns > self._enough_ns:
            return "time limit of figures that are not gated"
        if count >= (self._most if self._sitting is None else max(MOST_BLOCKS, self._min_blocks)):
            return "most openings made" if self._sitting is None else "most blocks taken"
        if self._used_ns > self._limit_ns and count >= _FEWEST:
            early = f" after {count * self._blocks} of {self._min_blocks} blocks"
            early += f", {count} of {self._openings} openings" if self._sitting is None else ""
            return "time limit" + ("" if enough else early)
        return ""

    @contextmanager
    def _sessions(self) -> Iterator[list[Session]]:
        number, count = len(self._samples), len(self._feeds)
        with ExitStack() as stack:
            if self._sitting is not None:
                sessions = list(self._sitting)
            else:
                order = [(number + place) % count for place in range(count)]
                opened = {i: stack.enter_context(closing(self._openers[i]())) for i in order}
                sessions = [opened[i] for i in range(count)]
            if self._sitting is None or number == 0:
                for session, feed in zip(sessions, self._feeds, strict=True):
                    session.bind(feed)
            if self._copies:
                sessions = [with_copies(*pair) for pair in zip(sessions, self._feeds, strict=True)]
            yield sessions

    def _begin(self, sessions: Sequence[Session], begin: int) -> None:
        clock = self._clock
        self._watch = Watch(gpus=any(session.device != "cpu" for session in sessions))
        self._names = [session.name for session in sessions]
        self._settings = [{"backend": one.backend, "device": one.device, **one.settings} for one in sessions]
        opening_ns = clock() - begin
        self._repeats = launches_a_sample(sessions, clock)
        rest_ns = begin + self._limit_ns - clock()
        self._warmup_rounds, self._blocks = warm_up(sessions, self._repeats, clock, clock() + rest_ns // 4), 1
        if self._sitting is not None:
            return
        start = clock()
        block(sessions, self._repeats, 0, clock)
        block_ns = max(1, clock() - start)
        fewest = ceil(self._min_blocks / self._openings)
        blocks = max(fewest, min(_BLOCKS_OF_AN_OPENING, ceil(opening_ns / block_ns)))
        self._blocks = max(1, min(blocks, self._limit_ns // self._openings // block_ns))


def in_turn(comparisons: Sequence[Running]) -> list[Comparison]:
    """All of them to their end, opening by opening."""
    while under_way := [one for one in comparisons if not one.stopped]:
        for one in under_way:
            one.advance()
    return [one.comparison() for one in comparisons]


def compare_openings(openers: Sequence[Opener], feeds: Sequence[Mapping[str, Array]], **options: Any) -> Comparison:
    """One comparison alone, to its end. Options are Running's."""
    (comparison,) = in_turn([Running(openers, feeds, **options)])
    return comparison


def compare(sessions: Sequence[Session], feeds: Sequence[Mapping[str, Array]], **options: Any) -> Comparison:
    """A single sitting: times the open sessions on their feeds (`feeds[i]` is bound to `sessions[i]`), which says
    little about the next one. Options are Running's."""
    with collector_paused():
        return compare_openings((), feeds, sitting=sessions, **options)


def speedup(first: Array, other: Array, *, enough: bool = True, seed: int = 0) -> Speedup:
    """Of samples (blocks, samples a block) taken block by block in turn; `enough` False withholds the verdict."""
    ratio, low, high = ratio_interval(first, other, seed=seed)
    detectable = (1 + MIN_EFFECT) * max(ratio / low, high / ratio) ** _POWER80
    return Speedup(ratio, (low, high), _verdict(low, high) if enough else "undecided", detectable)


def _verdict(low: float, high: float) -> Verdict:
    if low > 1:
        return "faster" if low > 1 + MIN_EFFECT else "slightly faster"
    if high < 1:
        return "slower" if high < 1 / (1 + MIN_EFFECT) else "slightly slower"
    return "not distinguishable"


def _narrow(samples: Array, precision: float, seed: int) -> bool:
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
    rows = np.linspace(0, len(ms) - 1, min(len(ms), MAX_SAMPLES)).round().astype(int)
    return Latency(
        name, p50, p95, p99, float(ms.mean()), float(ms.min()),
        None if batch is None else 1000 * batch / float(ms.mean()), len(ms), repeats,
        tuple(float(value) for value in ms[rows].round(6)),
    )  # fmt: skip
