"""A full disk is one line, and the folder stays usable."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest

from pipeline.workspace import folder as workspace
from runtime import files
from runtime.errors import UserError
from tests.pipeline.workspace.small_stages import Made, line, opened, ran, snapshot


def fill(out: Path) -> Made:
    (out / "text").write_bytes(bytes(6 << 20))
    (out / "more").write_bytes(bytes(6 << 20))
    return Made(out / "text", None, 0.0, (), {})


def test_a_full_disk_is_one_line_and_the_folder_stays_usable(small_disk: Path) -> None:
    run = small_disk / "run"
    line(run)
    before = snapshot(run)
    with pytest.raises(UserError) as caught, opened(run) as (work, _):
        work.stage("20-sparse", fill, inputs={}, code=1, versions={})
    told = str(caught.value)
    assert told.startswith(f"{run}: no space left on the disk (8.0 MiB free); stage 20-sparse needs at least ")
    assert float(told.split("at least ")[1].split(" MiB")[0]) > 8.0
    assert snapshot(run) == before
    assert ran(line(run)[0]) == [False] * 3


def test_a_stage_that_cannot_fit_is_refused_before_it_starts(small_disk: Path) -> None:
    started: list[Path] = []
    with (
        pytest.raises(UserError, match=r"stage 10-dense needs at least 9\.6 MiB"),
        opened(small_disk / "run") as (work, _),
    ):
        work.stage("10-dense", started.append, inputs={}, code=1, versions={}, needs_bytes=lambda: 10_000_000)
    assert started == []
    assert ran(line(small_disk / "run")[0]) == [True] * 3


def test_a_disk_too_full_for_the_run_folder_itself(small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(bytes(9 << 20))
    with pytest.raises(UserError, match=r"no space left on the disk \(0\.0 MiB free\)"):
        line(small_disk / "a" / "run")
    (small_disk / "ballast").unlink()
    assert ran(line(small_disk / "a" / "run")[0]) == [True] * 3


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("disk"), False),
    ],
)
def test_a_full_disk_is_known_by_number_or_words_also_as_a_cause(error: Exception, full: bool) -> None:
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert files.is_disk_full(error) is full
    assert files.is_disk_full(wrapped) is full


def test_sizes_are_rounded_up() -> None:
    assert [files.mib(n) for n in (0, 1, 2**20, 2**20 + 1, 3_250_585, 5 * 2**30)] == [
        "0.0 MiB",
        "0.1 MiB",
        "1.0 MiB",
        "1.1 MiB",
        "3.1 MiB",
        "5,120.0 MiB",
    ]
    assert list(workspace.STAGES) == sorted(workspace.STAGES)
