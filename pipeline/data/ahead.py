"""Files decoded by threads while the batches before them are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 2
Key = TypeVar("Key")
Read = TypeVar("Read")


def read_ahead(
    workers: int, batches: Iterable[tuple[Key, Iterable[Callable[[], Read]]]]
) -> Iterator[tuple[Key, list[Read]]]:
    """Of each batch its key and what its calls return, in order; the calls of AHEAD batches more run already."""
    waiting: deque[tuple[Key, list[Future[Read]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for key, calls in batches:
                waiting.append((key, [pool.submit(call) for call in calls]))
                if len(waiting) > AHEAD:
                    yield _read(*waiting.popleft())
            while waiting:
                yield _read(*waiting.popleft())
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()


def _read(key: Key, futures: list[Future[Read]]) -> tuple[Key, list[Read]]:
    return key, [future.result() for future in futures]
