"""Digests of the content of files; those of a large folder are remembered, so that only changed files are read again.

A file counts as unchanged while inode, size, modification time and change time are the same. No program can set the
change time back, so a file of equal size and time with other content is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from runtime.errors import UserError
from runtime.files import sha256

SELECT = "SELECT size, mtime, ctime, sha256 FROM files WHERE device=? AND inode=?"
RACY_NS = 2 * 10**9
"""A file changed so shortly before it was read may change again without another change time."""


def of_files(paths: Iterable[Path], rule: str) -> str:
    """Of `rule` and the names and bytes of the files, in the order given."""
    digest = hashlib.sha256(rule.encode())
    for path in paths:
        digest.update(b"\0" + os.fsencode(path.name) + b"\0" + bytes.fromhex(sha256(path)))
    return digest.hexdigest()


def of_tree(root: Path, paths: Iterable[Path], rule: str, cache: Path | None) -> str:
    """Of `rule`, and of names as seen from `root` and content of the files; links are followed. `cache`: a file to
    remember digests in, or None. UserError naming a file that is none."""
    digest = hashlib.sha256(rule.encode())
    with _remembered(cache) as table:
        for path in paths:
            name = os.fsencode(os.path.relpath(path, root))
            digest.update(b"\0" + name + b"\0" + _digest(path, table))
    return digest.hexdigest()


def _digest(path: Path, table: sqlite3.Connection | None) -> bytes:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "a file that is there", "bring it back, or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no plain file", "a file", "remove it")
    key = status.st_dev, status.st_ino
    value = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if table is not None:
        with contextlib.suppress(sqlite3.Error):  # a damaged cache
            row = table.execute(SELECT, key).fetchone()
            if row is not None and row[:3] == value:
                return bytes(row[3])
    content = bytes.fromhex(sha256(path))
    if table is not None and time.time_ns() - status.st_ctime_ns > RACY_NS:
        with contextlib.suppress(sqlite3.Error):
            table.execute("REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (*key, *value, content))
    return content


@contextlib.contextmanager
def _remembered(cache: Path | None) -> Iterator[sqlite3.Connection | None]:
    """None where nothing can be remembered: it is read again then."""
    table = None
    with contextlib.suppress(OSError, sqlite3.Error):
        if cache is None:
            raise FileNotFoundError  # without a home folder
        cache.parent.mkdir(parents=True, exist_ok=True)
        table = sqlite3.connect(cache, timeout=60)
        table.execute(
            "CREATE TABLE IF NOT EXISTS files (device INTEGER, inode INTEGER, size INTEGER, mtime INTEGER, "
            "ctime INTEGER, sha256 BLOB, PRIMARY KEY (device, inode))"
        )
    try:
        yield table
    finally:
        if table is not None:
            with contextlib.suppress(sqlite3.Error):
                table.commit()
            table.close()
