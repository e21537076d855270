"""Texts for files that the user names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from runtime.errors import UserError
from runtime.files import write_text

_DESCRIPTOR = re.compile(r"/(?:proc/(?:self|thread-self|\d+)/fd|dev/fd)/(\d+)")
_MOST_LINKS = 40  # as the kernel


def write_through(path: Path, text: str) -> None:
    """Write `text` to a file that the user names: a plain file is replaced at once, also behind a link, which stays
    one; a device or a pipe is written to; GitHub's step summary, which other steps write to, grows. UserError where
    that cannot be."""
    try:
        target = _behind_links(path)
        if isinstance(target, int):
            _into(os.dup(target), text)
        elif os.environ.get("GITHUB_STEP_SUMMARY") and target == Path(os.environ["GITHUB_STEP_SUMMARY"]).resolve():
            with target.open("a", encoding="utf-8") as file:
                file.write(text)
        elif target.exists() and not target.is_file() and not target.is_dir():
            _into(os.open(target, os.O_WRONLY | os.O_NONBLOCK), text)  # a pipe that nobody reads is an error
        elif target.is_dir():
            raise UserError(f"{path} is a folder", "a file to write to", "choose another path")
        else:
            write_text(target, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "a file to write to", "choose another path") from error


def _behind_links(path: Path) -> Path | int:
    """What is written to: a file, or the descriptor that /dev/stdout and the like stand for."""
    here = path.absolute()
    for _ in range(_MOST_LINKS):
        if match := _DESCRIPTOR.fullmatch(str(here)):
            return int(match[1])
        if not here.is_symlink():
            break
        here = here.parent / here.readlink()
    return here.resolve()


def _into(descriptor: int, text: str) -> None:
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
