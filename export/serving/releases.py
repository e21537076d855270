"""A published folder is replaced at once and can be taken back: the one before stands beside it as `.NAME.previous`.

The new folder is filled as `.NAME.next`. Where the kernel can, it and the old one change places in one step
(renameat2(2), RENAME_EXCHANGE), so that a server that looks at any moment finds a whole folder; else by two renames.
Every release has a serial, which tells after a kill which of the folders is which.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.serving.release_index import INDEX, Index, read_index, verify_release
from runtime.errors import UserError
from runtime.files import disk_full, existing, is_disk_full, locked, sync, sync_tree

Swap = Literal["new", "exchanged", "renamed"]
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass
class Release:
    """A folder to fill; it must hold an index with this serial when it is left. `swap` tells how it got in place."""

    folder: Path
    serial: int
    swap: Swap = "new"


@contextmanager
def new_release(directory: Path, *, replace: bool) -> Iterator[Release]:
    """A folder to fill, which becomes `directory` when it is left without an exception, else is removed.

    With `replace` it takes the place of an earlier release, which becomes the one to roll back to. UserError: there is
    one and `replace` is not asked for, or something else stands there, another process publishes beside it, the folder
    cannot be written, or the disk is full.
    """
    directory = _named(directory)
    with _telling(directory), _locked(directory):
        _repair(directory)
        if directory.is_symlink() or (directory.exists() and not replace):
            raise UserError(f"{directory} exists", "a new folder", "choose another, or replace it (--replace)")
        here = _index(directory).serial if directory.exists() else 0
        serial = 1 + max(here, _serial(_previous(directory)) or 0)
        staging = _next(directory)
        staging.mkdir()
        release = Release(staging, serial)
        try:
            yield release
            assert read_index(staging).serial == serial
            sync_tree(staging)
            release.swap = _install(staging, directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def rollback(directory: Path) -> tuple[Index, Swap]:
    """Puts the release before in place of `directory`, which becomes the one to roll back to.

    Both stay as they are but for the files' times: a server that polls takes only what is newer. UserError: there is
    nothing to roll back to, or a file in it was changed.
    """
    directory = _named(directory)
    with _telling(directory), _locked(directory):
        _repair(directory)
        before = _previous(directory)
        if directory.is_symlink() or not directory.is_dir() or not before.is_dir():
            raise UserError(f"{directory} has no release before it", "one that was replaced", "publish with --replace")
        _index(directory)
        index = verify_release(before)
        now = time.time_ns()
        for path in (before, *before.rglob("*")):
            os.utime(path, ns=(now, now))
        return index, _install(before, directory)


def _install(source: Path, directory: Path) -> Swap:
    """Puts `source` in place; what was there becomes the previous release."""
    if not directory.exists():
        source.rename(directory)
        sync(directory.parent)
        return "new"
    if exchange(source, directory):
        _keep(source, directory)
        return "exchanged"
    aside = _aside(directory)
    directory.rename(aside)
    try:
        source.rename(directory)
    except OSError:
        aside.rename(directory)
        raise
    _keep(aside, directory)
    return "renamed"


def _keep(old: Path, directory: Path) -> None:
    """Makes `old` the previous release of `directory`."""
    if old != _previous(directory):
        shutil.rmtree(_previous(directory), ignore_errors=True)
        old.rename(_previous(directory))
    sync(directory.parent)


def exchange(first: Path, second: Path) -> bool:
    """Lets two folders change places in one step; False where the system or its file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done = call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE))
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(first))


def _repair(directory: Path) -> None:
    """Clears what a killed process left beside `directory`."""
    staging, aside = _next(directory), _aside(directory)
    if aside.is_dir() and not directory.exists():
        aside.rename(directory)
    elif aside.is_dir():
        _keep(aside, directory)
    if staging.is_dir() and not staging.is_symlink():
        staged, there = _serial(staging), _serial(directory)
        if staged is not None and there is not None and staged < there:  # killed right after they changed places
            _keep(staging, directory)
        else:
            shutil.rmtree(staging)


def _serial(folder: Path) -> int | None:
    try:
        return read_index(folder).serial
    except UserError:
        return None


def _index(path: Path) -> Index:
    if not (path / INDEX).is_file():
        raise UserError(f"{path} holds no {INDEX}", "a folder that demport published", "choose another folder")
    return read_index(path)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory.parent, wait=False))
        except BlockingIOError:
            raise UserError(
                f"{directory.parent}: another process publishes there", "one at a time", "wait for it"
            ) from None
        yield


@contextmanager
def _telling(directory: Path) -> Iterator[None]:
    """Errors of the file system as one line that names the folder."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(
                existing(directory.parent), 2**20, "another release beside the one that is there"
            ) from error
        hint = " or a mount point" if error.errno == errno.EBUSY else ""
        raise UserError(
            f"{directory}: {error.strerror}", f"a folder that can be replaced, no file{hint}", "choose another folder"
        ) from error


def _named(directory: Path) -> Path:
    """The folder under its own name, which `.` and `..` are not: the names beside it are made from that."""
    named = directory.resolve() if directory.name in ("", "..") else directory
    if not named.name:
        raise UserError(f"{directory} is the root folder", "a folder that can be replaced", "choose another folder")
    return named


def _next(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.next")


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.aside")


def _previous(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.previous")
