"""Stand-ins for pycuda and the CUDA driver that hold device memory in host memory.

The pycuda names are those of its 2026.1 wrapper.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Context:
    """pycuda.driver.Context: counts how often it is current."""

    depth = 0

    def push(self) -> None:
        Context.depth += 1

    @staticmethod
    def pop() -> None:
        assert Context.depth > 0
        Context.depth -= 1


class Device:
    """pycuda.driver.Device."""

    def __init__(self, index: int) -> None:
        assert index == 0

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return "stand-in GPU"

    def retain_primary_context(self) -> Context:
        return Context()


class Stream:
    """pycuda.driver.Stream: work is done when it is synchronised, so that a forgotten wait shows."""

    def __init__(self, flags: int = 0) -> None:
        assert Context.depth > 0
        assert flags == 1, "a stream that waits for the default one would break captures"
        self.handle = id(self)
        self.queue: list[Any] = []
        STREAMS[self.handle] = self

    def synchronize(self) -> None:
        assert Context.depth > 0
        for work in self.queue:
            work()
        self.queue.clear()


STREAMS: dict[int, Stream] = {}


class Event:
    """pycuda.driver.Event: synchronising it does the work queued before it was recorded."""

    def __init__(self) -> None:
        assert Context.depth > 0
        self.behind: list[Any] = []
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.stream, self.behind = stream, list(stream.queue)

    def synchronize(self) -> None:
        assert Context.depth > 0
        if self.stream is not None:
            for work in self.behind:
                work()
            self.stream.queue = self.stream.queue[len(self.behind) :]
            self.behind = []


class Allocation:
    """pycuda.driver.DeviceAllocation: poisoned with 0xFF, so that what was never written reads as NaN."""

    live = 0

    def __init__(self, size: int) -> None:
        assert Context.depth > 0
        self.memory = (ctypes.c_ubyte * size)(*([255] * size))
        Allocation.live += 1

    def __int__(self) -> int:
        return ctypes.addressof(self.memory)

    def free(self) -> None:
        assert Context.depth > 0
        Allocation.live -= 1


def upload(dest: Allocation, src: NDArray[Any], stream: Stream) -> None:
    """pycuda.driver.memcpy_htod_async."""
    assert src.flags.c_contiguous
    assert src.nbytes <= len(dest.memory)
    stream.queue.append(lambda: ctypes.memmove(int(dest), src.ctypes.data, src.nbytes))


def download(dest: NDArray[Any], src: Allocation, stream: Stream) -> None:
    """pycuda.driver.memcpy_dtoh_async."""
    assert dest.flags.c_contiguous
    assert dest.nbytes <= len(src.memory)
    stream.queue.append(lambda: ctypes.memmove(dest.ctypes.data, int(src), dest.nbytes))


DRIVER = SimpleNamespace(
    Device=Device,
    Stream=Stream,
    Event=Event,
    mem_alloc=Allocation,
    pagelocked_empty=np.empty,
    memcpy_htod_async=upload,
    memcpy_dtoh_async=download,
)


class CapturedGraph:
    """runtime.backends.cuda_graph.CapturedGraph: what is queued while it is made is not run, but by each launch."""

    live = 0

    def __init__(self, stream: int, enqueue: Any, what: str) -> None:
        assert Context.depth > 0
        self.stream = STREAMS[stream]
        before, self.stream.queue = self.stream.queue, []
        assert before == [], "work that is queued already would not be captured"
        enqueue()
        self.work, self.stream.queue = self.stream.queue, before
        CapturedGraph.live += 1

    def launch(self) -> None:
        assert Context.depth > 0
        self.stream.queue += self.work

    def free(self) -> None:
        assert Context.depth > 0
        CapturedGraph.live -= 1
