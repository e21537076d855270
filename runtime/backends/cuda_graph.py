"""CUDA graphs of what is queued on a stream, asked of the driver itself: pycuda has no call for them.

A graph replays its kernels with one call, on the addresses they had when it was captured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from runtime.errors import UserError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do with CUDA meanwhile is no error


@cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise UserError(
            f"the CUDA driver does not load ({error})", "the NVIDIA driver's libcuda", "leave CUDA graphs off"
        ) from error


class CapturedGraph:
    """What `enqueue` queues on the stream with this handle (an address). Make, launch and free it while the context is
    current. `UserError` where the driver refuses; `what` names what is captured."""

    def __init__(self, stream: int, enqueue: Callable[[], None], what: str) -> None:
        self._what, self._stream = what, ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        driver = _driver()
        self._call(driver.cuStreamBeginCapture_v2(self._stream, ctypes.c_int(_THREAD_LOCAL)), "be captured")
        try:
            enqueue()
        finally:  # a stream left capturing could not be used for anything else
            ended = driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        self._call(ended, "be captured")
        try:
            status = driver.cuGraphInstantiateWithFlags(ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
            self._call(status, "become a graph")
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Queues one run on the stream."""
        self._call(_driver().cuGraphLaunch(self._executable, self._stream), "be launched as a graph")

    def free(self) -> None:
        """A second call does nothing."""
        if self._executable:
            _driver().cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()

    def _call(self, code: int, what: str) -> None:
        if code != 0:  # CUDA_SUCCESS
            raise UserError(
                f"{self._what} cannot {what} (CUDA error {code})", "work that a CUDA graph can hold", "leave it off"
            )
