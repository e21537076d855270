"""Files and folders that are whole or absent, their hashes and locks, and files of others, read up to a limit."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runtime.errors import UserError

MAX_JSON_BYTES = 64 << 20
"""Of a JSON file in a run folder: the quickstart's largest has 0.1 MiB; parsed, JSON takes about ten times its size."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Libraries written in Rust or C++ report a full disk as text only.
_FULL_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded")


def read_bounded(path: Path, limit: int = MAX_JSON_BYTES, *, links: bool = True) -> bytes:
    """The bytes of a plain file. OSError, its reason in `strerror`: it cannot be read, is a device or a pipe (which
    would keep us waiting), is over `limit` bytes, or is a link while `links` is False."""
    if not links and not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "no plain file", str(path))
    with open(path, "rb", opener=_without_waiting) as file:  # Path.open takes no opener
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


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe without waiting for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[int]:
    """Holds flock(2) on a folder, or on a file that is created where it is missing; yields the descriptor. The kernel
    drops the lock with the process. BlockingIOError: another process holds it, and we do not `wait`."""
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a fresh name beside `path`; left without an exception it takes the place of `path`, else it is removed.

    What a killed process left there for the same `path` is removed first: a fresh file is locked for as long as it is
    written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path)
    handle, temporary = _locked_beside(path)
    try:
        yield temporary
        sync(temporary)
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
    abandoned = [item for item in path.parent.iterdir() if ours.fullmatch(item.name) and not item.is_symlink()]
    for item in abandoned:
        with suppress(OSError), locked(item, wait=False):  # it is being written, or gone, or somebody else's
            item.unlink()


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` at once: another process sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes strict JSON (no NaN, no Infinity), atomically, with a final newline."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes; `UserError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "a readable file", "check the path") from error


def sha256_of_json(value: object) -> str:
    """Hex digest of a JSON value: keys in order, without white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sync(path: Path) -> None:
    """Asks the kernel to put a file or folder on the disk before we go on."""
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


def bytes_in(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 where it is missing."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(path: Path) -> None:
    """Removes a folder or file if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when it is left without an exception, else is removed.

    UserError: `path` is there already, cannot be made, or the disk is full.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already", "expected a new or empty folder", "choose another --out")
    part = path.with_name(f".{path.name}.tmp")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        remove(part)
        part.mkdir()
        yield part
        sync_tree(part)
        part.rename(path)
    except BaseException as error:
        written = bytes_in(part)
        remove(part)
        if is_disk_full(error):
            raise disk_full(existing(path.parent), written + 2**20, str(path)) from error
        if isinstance(error, (PermissionError, NotADirectoryError)):
            raise UserError(f"{path}: {error.strerror}", "a folder to write to", "choose another --out") from error
        raise


def existing(folder: Path) -> Path:
    """The folder, or the nearest parent that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that no space (or quota) is left."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(folder: Path, needed_bytes: int, what: str) -> UserError:
    """The error of a full disk: the folder, what is free there, and the space `what` needs at least."""
    free = shutil.disk_usage(folder).free
    return UserError(
        f"{folder}: no space left on the disk ({mib(free)} free)",
        f"{what} needs at least {mib(needed_bytes)}",
        "free that much or choose a folder on another disk, then run the same command again",
    )


def mib(count: int) -> str:
    """3250585 -> "3.1 MiB", rounded up to a tenth."""
    return f"{-(-count * 10 // 2**20) / 10:,.1f} MiB"
