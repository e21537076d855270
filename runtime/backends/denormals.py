"""Flush denormal numbers to zero in one thread for a while.

ONNX Runtime's `session.set_denormal_as_zero` sets it in the session's worker threads, but in the calling thread only
when it opens the process's first session, and then for good (NumPy warns of it, and other code computes other
values). So the calling thread's floating-point environment is restored after a session is opened, and set around each
run: `fegetenv` and `fesetenv` of the C library, on x86-64 (MXCSR, bits DAZ and FTZ) and on 64-bit Arm (FPCR, bit FZ).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import struct
import sys
from functools import cache
from types import TracebackType

# machine -> (offset of the control register in fenv_t, bits that flush denormals); glibc's bits/fenv.h
_CONTROL = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
_ENVIRONMENT_BYTES = 256  # fenv_t is 32 bytes on x86-64 and 8 on 64-bit Arm


@cache
def _libm() -> ctypes.CDLL | None:
    """The C library's mathematics, where the layout of fenv_t is known; None elsewhere."""
    if sys.platform != "linux" or platform.machine() not in _CONTROL or platform.libc_ver()[0] != "glibc":
        return None
    name = ctypes.util.find_library("m")
    return ctypes.CDLL(name) if name else None


class Denormals:
    """`with Denormals(flush=True):` flushes in this thread; with flush=False it only restores what the body changed.

    Reusable, one thread at a time. `available` is False where the platform is not known: then it does nothing.
    """

    def __init__(self, *, flush: bool) -> None:
        self._libm = _libm()
        self.available = self._libm is not None
        self._flush = flush
        self._before = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
        self._flushed = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
        if self._libm is not None:
            offset, bits = _CONTROL[platform.machine()]
            self._libm.fegetenv(self._flushed)
            (word,) = struct.unpack_from("<I", self._flushed, offset)
            struct.pack_into("<I", self._flushed, offset, word | bits)

    def __enter__(self) -> None:
        if self._libm is not None:
            self._libm.fegetenv(self._before)
            if self._flush:
                self._libm.fesetenv(self._flushed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._libm is not None:
            self._libm.fesetenv(self._before)
