"""Files that are whole or absent, and what identifies them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runtime.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a fresh name beside `path`; left without an exception it takes the place of `path`, else it is removed.

    What a killed process left there for the same `path` is removed first: a fresh file is locked (flock(2), which the
    kernel drops with the process) for as long as it is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path)
    handle, temporary = _locked_beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private; a server runs as another user
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        os.close(handle)


def _locked_beside(path: Path) -> tuple[int, Path]:
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with suppress(OSError):  # without locks on this file system nothing is cleared there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(name):  # else another process took it for abandoned before it was locked
            return handle, Path(name)
        os.close(handle)


def _clear_abandoned(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    left = [item for item in path.parent.iterdir() if ours.fullmatch(item.name)]
    for item in left:
        with suppress(OSError):  # it is being written, or gone, or somebody else's
            handle = os.open(item, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                item.unlink()
            finally:
                os.close(handle)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes strict JSON (no NaN, no Infinity), atomically, with a final newline."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes; `UserError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "a readable file", "check the path") from error


def sync(path: Path) -> None:
    """Ask the kernel to put a file or folder on the disk before we go on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for every file and folder in `folder`, and itself."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)
