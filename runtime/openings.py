"""Comparisons whose sessions are opened anew again and again, spread over time, so that an interval holds for the next
run too.

For a second or several a machine stands in a state that favours one network over another: sittings of a second each
differ by several times what the samples within one of them tell (benchmarks/results/gate_reruns.cpu.json). An interval
from one sitting is true of that sitting alone; a gate that compares two runs by it cries wolf.

**Opening**: every session opened, the first one taking turns; bound, warmed up (at the first opening as sampling.py
tells, later by one round, or for up to 3 as long as they take less than 50 ms), so many blocks, closed. The first
opening decides how many blocks: `min_blocks` over 6 openings, more where opening takes longer than that, fewer where
the time limit would not let 6 openings be.
**In turn**: several comparisons go on opening by opening, one after the other, so that each is spread over the time of
all. Each lasts LEAST_S or its time limit, whichever is less.
**Length**: at least `min_blocks` and 6 openings, then until every interval is narrow enough, or `enough_s`, or the time
limit (both of this comparison's own openings), or 300 openings. At the time limit it stops even before that, with 5
openings or more, and then the verdict is "not distinguishable".
**Interval**: 95 %, the bootstrap of bootstrap.py over openings: each is drawn as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from math import ceil, inf
from typing import Any

import numpy as np

from runtime.backend import Array, Session
from runtime.collector import collector_paused
from runtime.latency import Comparison, concluded, narrow, settings_of, watch_for, with_copies
from runtime.sampling import Clock, block, launches_a_sample, sample, warm_up

Opener = Callable[[], Session]

OPENINGS = 6
MOST_OPENINGS = 300
_FEWEST = 5  # fewer make no interval
LEAST_S = 20.0
_MOST_BLOCKS = 50  # of an opening
_WARM_NS = 50_000_000


class Running:
    """A comparison under way. The first opening decides launches a sample and blocks an opening for all."""

    def __init__(
        self,
        openers: Sequence[Opener],
        feeds: Sequence[Mapping[str, Array]],
        *,
        min_blocks: int = 30,
        time_limit_s: float = 20.0,
        precision: float = 0.01,
        seed: int = 0,
        copies: bool = False,
        enough_s: float = inf,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        """`openers[i]` opens a session of network i, which is fed `feeds[i]`. With `copies` the inputs' and the
        outputs' are inside the timed part: what a caller waits for. `enough_s`: when it ends though an interval is
        still wide."""
        assert len(openers) == len(feeds) > 0
        self._openers, self._feeds, self._copies, self._clock, self._seed = openers, feeds, copies, clock, seed
        self._asked = {"min_blocks": min_blocks, "time_limit_s": time_limit_s, "precision": precision}
        self._min_blocks, self._precision, self._limit_ns = min_blocks, precision, int(time_limit_s * 1e9)
        self._enough_ns = enough_s * 1e9
        self._taken: list[Array] = []
        self._start, self._used_ns, self._next_look = clock(), 0, OPENINGS
        self.stopped = ""
        """What ended it; "" while it is under way."""

    def go_on(self) -> None:
        """One more opening. Raises what an opener or a session raises."""
        begin = self._clock()
        self._taken.append(self._opening(begin))
        self._used_ns += self._clock() - begin
        self.stopped = self._end()

    def told(self) -> Comparison:
        """The figures of a comparison that has `stopped`."""
        protocol = {
            "openings": len(self._taken), "blocks": len(self._taken) * self._blocks,
            "warmup_rounds": self._warmup_rounds, "stopped": self.stopped, **self._asked,
        }  # fmt: skip
        conditions = self._watch.document()
        samples, settings = np.array(self._taken), tuple(self._settings)
        return concluded(
            self._names, samples, self._repeats, self._feeds, self._enough(), self._seed, protocol, settings, conditions
        )

    def _enough(self) -> bool:
        return len(self._taken) >= OPENINGS and len(self._taken) * self._blocks >= self._min_blocks

    def _end(self) -> str:
        count = len(self._taken)
        spread = self._clock() - self._start >= min(LEAST_S * 1e9, self._limit_ns)
        if self._enough() and spread and count >= self._next_look:
            self._next_look = ceil(1.2 * count)
            if narrow(np.array(self._taken), self._precision, self._seed):
                return "interval narrow enough"
        if self._enough() and spread and self._used_ns > self._enough_ns:
            return "time limit of figures that are not gated"
        if count >= MOST_OPENINGS:
            return "most openings made"
        if self._used_ns > self._limit_ns and count >= _FEWEST:
            so_far = f"{count * self._blocks} of {self._min_blocks} blocks, {count} of {OPENINGS} openings"
            return "time limit" + ("" if self._enough() else f" after {so_far}")
        return ""

    def _opening(self, begin: int) -> Array:
        """Samples in nanoseconds, (sessions, 2 x blocks)."""
        number, count = len(self._taken), len(self._openers)
        with ExitStack() as stack:
            opened: dict[int, Session] = {}
            for place in range(count):
                which = (number + place) % count
                opened[which] = stack.enter_context(closing(self._openers[which]()))
            sessions = [opened[which] for which in range(count)]
            for session, feed in zip(sessions, self._feeds, strict=True):
                session.bind(feed)
            if self._copies:
                sessions = [with_copies(*pair) for pair in zip(sessions, self._feeds, strict=True)]
            with collector_paused():
                if number == 0:
                    self._begin(sessions, begin)
                else:
                    self._warm(sessions)
                rows = []
                for index in range(self._blocks):
                    rows.append(block(sessions, self._repeats, number + index, self._clock))
                    self._watch.look()
        return np.array(rows).transpose(1, 0, 2).reshape(count, -1)

    def _begin(self, sessions: Sequence[Session], begin: int) -> None:
        clock = self._clock
        self._watch = watch_for(sessions)
        self._names, self._settings = [one.name for one in sessions], [settings_of(one) for one in sessions]
        opening_ns = clock() - begin
        self._repeats = launches_a_sample(sessions, clock)
        self._warmup_rounds = warm_up(sessions, self._repeats, clock, begin + self._limit_ns // 4)
        start = clock()
        block(sessions, self._repeats, 0, clock)
        block_ns = max(1, clock() - start)
        wanted = max(ceil(self._min_blocks / OPENINGS), min(_MOST_BLOCKS, ceil(opening_ns / block_ns)))
        self._blocks = max(1, min(wanted, self._limit_ns // OPENINGS // block_ns))

    def _warm(self, sessions: Sequence[Session]) -> None:
        start = self._clock()
        for _ in range(3):
            for session, count in zip(sessions, self._repeats, strict=True):
                sample(session, count, self._clock)
            if self._clock() - start > _WARM_NS:
                break


def in_turn(comparisons: Sequence[Running]) -> list[Comparison]:
    """All of them to their end, opening by opening."""
    while under_way := [one for one in comparisons if not one.stopped]:
        for one in under_way:
            one.go_on()
    return [one.told() for one in comparisons]


def compare_openings(openers: Sequence[Opener], feeds: Sequence[Mapping[str, Array]], **options: Any) -> Comparison:
    """One comparison alone, to its end. Options are Running's."""
    (told,) = in_turn([Running(openers, feeds, **options)])
    return told
