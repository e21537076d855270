"""Temporary files of a stage, in the run folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runtime import files


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Temporary files of the stage, also of processes it starts, lie in `folder`: whatever kills us, the next run on
    this run folder removes them."""
    folder.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder.resolve())
    variable = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder.resolve())
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        files.remove(folder)
