"""Whole folders on the disk, and what to say when the disk is full; single files are `export.files`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from export.files import replacing
from export.files import sha256 as sha256
from export.files import sync as sync
from export.files import sync_tree as sync_tree
from export.files import write_json as write_json
from runtime.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Libraries written in Rust or C++ report a full disk as text only.
_FULL_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` at once: another process sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sha256_of_tree(paths: Iterable[Path], root: Path) -> str:
    """Hex digest of the names relative to `root` and the contents of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def bytes_in(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 where it is missing."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(path: Path) -> None:
    """Remove a folder or file if it is there."""
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
