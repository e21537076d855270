"""Files that may come from anybody, read whole up to a limit."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 << 20
"""Of a JSON file in a run folder: the quickstart's largest has 0.1 MiB; parsed, JSON takes about ten times its size."""


def read_bounded(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a plain file. OSError, its reason in `strerror`: it cannot be read, is a device or a pipe (which
    would keep us waiting), or is over `limit` bytes."""
    with open(path, "rb", opener=_at_once) as file:  # Path.open takes no opener
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"over {limit} bytes", str(path))
    return data


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file. OSError as `read_bounded`; ValueError where it is no JSON, or nested too deep."""
    try:
        return json.loads(read_bounded(path, limit).decode())
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe without waiting for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)
