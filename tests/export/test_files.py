"""Files are whole or absent."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from export.files import replacing, sha256, write_json
from runtime.errors import UserError
from tests.conftest import REPOSITORY


def test_replaces_on_success_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"one")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert [item.name for item in path.parent.iterdir()] == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="midway"), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("midway")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.bin"]


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"x": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": [1, 2.5, None]}


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(UserError, match=r"missing cannot be read \(No such file"):
        sha256(tmp_path / "missing")


def left_by_a_killed_writer(path: Path) -> Path:
    """The temporary file of a process that was killed while it wrote `path`."""
    script = (
        "import sys, time; from pathlib import Path; from export.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); print(temporary, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        temporary = Path(process.stdout.readline().strip())
        with replacing(path) as ours:  # while it lives, its file is left alone
            ours.write_bytes(b"whole")
        assert temporary.read_bytes() == b"half"
        process.kill()
    return temporary


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "[net].engine"
    left = left_by_a_killed_writer(path)
    assert left.parent == tmp_path and left.exists()
    others = [tmp_path / name for name in (".[net].engine.abcdefgh.tmp2", ".other.abcdefgh.tmp", ".[net].engine.tmp")]
    for other in others:
        other.touch()
    (tmp_path / ".[net].engine.zzzzzzzz.tmp").symlink_to(others[0])  # nobody's file: not ours to follow
    with pytest.raises(RuntimeError), replacing(path):
        raise RuntimeError
    assert not left.exists()
    assert path.read_bytes() == b"whole"
    assert all(other.exists() for other in others)


def test_a_fresh_name_taken_for_abandoned_before_it_was_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = fcntl.flock, list[int]()

    def late(handle: int, operation: int) -> None:
        if not made:
            made.append(handle)
            for path in tmp_path.iterdir():
                path.unlink()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"whole")
    assert made
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("file", b"whole")]
