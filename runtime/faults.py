"""Faults of the machine, which no code can mend: too little memory, and disks that fail or cannot be written to."""

from __future__ import annotations

import errno

from runtime.errors import UserError

_DISK = {
    errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ESTALE,
    errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip
_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "bad allocation",
    "bad_alloc",
    "Failed to allocate memory",
)
"""Of torch on a GPU and on a CPU, of ONNX Runtime, and of C++."""


def machine_fault(error: BaseException) -> UserError | None:
    """`error` in one line where the machine is its cause, else None."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError) and error.errno in _DISK:
        place = f"{error.filename}: " if error.filename else ""
        return UserError(f"{place}{error.strerror}", "a disk that can be read and written", "mend it, or use another")
    short = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or short or any(words in str(error) for words in _MEMORY_WORDS):
        reason = f" ({text})" if text else ""
        return UserError(
            f"the memory is too small{reason}",
            "memory for the network and a batch of images",
            "set smaller batches, end other programs, or use a larger machine",
        )
    return None
