"""What a reader of a damaged file may not do: crash, hang, take much memory, write, start a process, or connect."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from runtime.errors import UserError

FEW, MANY, SLOW = 150, 10_000, 1000  # examples; from SLOW on only in the slow tier
SECONDS, BYTES = 2.0, 2 << 30

_watching: list[list[str]] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: what the reader does beside reading."""
    if not _watching:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.system", "os.exec"):
        _watching[0].append(f"{event} {arguments[0]}")
    elif event == "socket.connect":
        _watching[0].append(f"{event} {arguments[1]}")
    elif event.startswith(("subprocess.", "os.posix_spawn", "pickle.find_class")) or (
        event == "ctypes.dlopen" and arguments[0] is not None  # None is the C library that is there already
    ):
        _watching[0].append(f"{event} {arguments[0] if arguments else ''}")


@contextmanager
def little_memory() -> Iterator[None]:
    """The process may grow by 2 GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def calmly(read: Callable[[], object], inside: Path | str | None = None) -> bool:
    """Whether it was read; a UserError of one line is no crash. Writes, and connections to an address, are allowed
    `inside` alone."""
    done: list[str] = []
    start = time.process_time()
    _watching.append(done)
    try:
        read()
        good = True
    except UserError as error:
        good = False
        told = str(error)
        assert told.count("; ") >= 2 and len(told) < 2000, told[:300]
        " ".join(told.split()).encode("utf-8", "backslashreplace")
    finally:
        _watching.clear()
    assert time.process_time() - start < SECONDS
    mine = [one for one in done if "__pycache__" not in one]  # Python's own, of what is imported on the way
    strange = [one for one in mine if inside is None or str(inside) not in one]
    assert strange == [], strange
    return good


def examples(count: int) -> settings:
    """`count` examples: the same ones every time where they are few, so that luck fails no build; else new ones."""
    return settings(
        max_examples=count,
        derandomize=count < SLOW,
        print_blob=True,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def attempts(strategy: st.SearchStrategy[bytes], count: int, attempt: Callable[[bytes], bool]) -> int:
    """How many of `count` drawn files were still good, in little memory."""
    good = 0

    @examples(count)
    @given(strategy)
    def one(data: bytes) -> None:
        nonlocal good
        good += attempt(data)

    with little_memory():
        one()
    return good
