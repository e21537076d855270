"""Samples of several sessions taken in turn, and the launches that warm them up first.

**Sample**: one launch that is not timed, because the session before left other data in the caches and other threads
awake, then the timed launch and wait; of a network faster than 50 us so many launches that they last as long, and
their mean. Copies are in bind and fetch and not timed.
**Block**: every session once in order and once in reverse (A B B A), and the order turns by one from block to block; so
a machine that slowly changes speed changes it for all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, cast

import numpy as np

from runtime.backends import Array, Session

Clock = Callable[[], int]
"""Counts nanoseconds."""

_SHORTEST_NS = 50_000  # a timed sample lasts at least this long
_WINDOW = 5  # rounds
_STABLE = 0.05
_WARM_NS = 50_000_000


def sample(session: Session, repeats: int, clock: Clock) -> float:
    """Nanoseconds a launch."""
    session.launch()
    session.wait()
    start = clock()
    for _ in range(repeats):
        session.launch()
        session.wait()
    return (clock() - start) / repeats


def block(sessions: Sequence[Session], repeats: Sequence[int], index: int, clock: Clock) -> list[list[float]]:
    """Two samples of each session: there and back, starting with another session from block to block."""
    count = len(sessions)
    order = [(index + step) % count for step in range(count)]
    samples: list[list[float]] = [[] for _ in sessions]
    for i in order + order[::-1]:
        samples[i].append(sample(sessions[i], repeats[i], clock))
    return samples


def launches_a_sample(sessions: Sequence[Session], clock: Clock) -> list[int]:
    """Of each session, by the shortest of three launches."""
    shortest = [min(sample(session, 1, clock) for _ in range(3)) for session in sessions]
    return [max(1, ceil(_SHORTEST_NS / max(single, 1.0))) for single in shortest]


def warm_up(sessions: Sequence[Session], repeats: Sequence[int], clock: Clock, deadline: int) -> int:
    """Rounds of a sample each until, for every session, the median of 5 rounds is within 5 % of that of the 5 before;
    at least 15 rounds, but at most one after the deadline. How many it took."""
    rounds: list[list[float]] = []
    while len(rounds) < 3 * _WINDOW or not _stable(np.array(rounds[-2 * _WINDOW :])):
        if clock() > deadline and rounds:
            break
        rounds.append([sample(session, count, clock) for session, count in zip(sessions, repeats, strict=True)])
    return len(rounds)


def warm_up_again(sessions: Sequence[Session], repeats: Sequence[int], clock: Clock) -> None:
    """Up to three rounds, as long as they take less than 50 ms: for networks that were warmed up before."""
    start = clock()
    for _ in range(3):
        for session, count in zip(sessions, repeats, strict=True):
            sample(session, count, clock)
        if clock() - start > _WARM_NS:
            break


def _stable(rounds: Array) -> bool:
    """rounds: (2 windows, sessions)."""
    before, now = np.median(rounds[:_WINDOW], axis=0), np.median(rounds[_WINDOW:], axis=0)
    return bool((np.abs(now - before) <= _STABLE * before).all())


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
