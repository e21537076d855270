"""A run killed at every point leaves a folder that the next run completes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.workspace import record as stage_record
from tests.conftest import REPOSITORY
from tests.pipeline.workspace.small_stages import line, ran

CHILD = """
    import os, signal, sys
    from pathlib import Path
    from tests.pipeline.workspace.small_stages import line
    from pipeline.workspace import folder as workspace, record as stage_record
    from runtime import files

    point, folder, b = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    calls = 0

    def before(owner, name, count):
        original = getattr(owner, name)
        def wrapped(*arguments, **options):
            global calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)
        setattr(owner, name, wrapped)

    owner, name, count = {
        "work": (Path, "write_text", 2),
        "record": (stage_record, "write_sealed", 1),
        "sync": (files, "sync_tree", 1),
        "first rename": (Path, "rename", 1),
        "second rename": (Path, "rename", 2),
        "removal of the old": (files, "remove", 2 * len(workspace.STAGES) + 1),  # after those of the repair
        "half of the old removed": (os, "unlink", 2 * len(workspace.STAGES) + 3),
    }[point]
    before(owner, name, count)
    line(folder, b=b)
"""


@pytest.mark.parametrize(
    "point",
    ["work", "record", "sync", "first rename", "second rename", "removal of the old", "half of the old removed"],
)
@pytest.mark.parametrize("again", [False, True], ids=["first run", "replacing"])
def test_kill_9_at_any_point_leaves_a_folder_the_next_run_completes(tmp_path: Path, point: str, again: bool) -> None:
    """The stage under way is lost at most: a complete one is kept, an old one that was being replaced comes back."""
    if again:
        line(tmp_path)
    code = textwrap.dedent(CHILD)
    child = subprocess.run(
        [sys.executable, "-c", code, point, str(tmp_path), "2"], cwd=REPOSITORY, capture_output=True, check=False
    )
    if point == "second rename" and not again:
        return  # a first run renames once a stage; its second rename is the next stage's first
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    for folder in tmp_path.glob("[0-9]*"):
        record = stage_record.read(folder)
        assert record is not None and record.problem is None, f"{folder} is half-written"
    done, _ = line(tmp_path, b=2)
    assert [stage.folder.name for stage in done] == ["10-dense", "20-sparse", "40-onnx"]
    assert (tmp_path / "20-sparse" / "text").read_text() == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "10-dense", "20-sparse", "40-onnx"]
    assert ran(line(tmp_path, b=2)[0]) == [False] * 3


def test_a_stage_that_was_complete_when_killed_is_kept(tmp_path: Path) -> None:
    line(tmp_path)
    (tmp_path / "10-dense").rename(tmp_path / ".10-dense.tmp")
    done, said = line(tmp_path)
    assert ran(done) == [False] * 3
    assert said[0] == "10-dense: kept, an interrupted run had finished it"
