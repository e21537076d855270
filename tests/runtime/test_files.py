"""Files are whole or absent; one that may be anything is read whole, up to a limit, or refused with the reason."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.backends import SIDECAR_BYTES, sidecar
from runtime.errors import UserError
from runtime.files import locked, read_bounded, read_json, replacing, sha256, write_json
from tests.conftest import REPOSITORY


def test_it_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'"abc"')
    assert read_bounded(path, 5) == b'"abc"'
    assert read_json(path, 5) == "abc"
    with pytest.raises(OSError) as caught:
        read_bounded(path, 4)
    assert caught.value.strerror == "over 4 bytes" and caught.value.filename == str(path)


def test_what_would_keep_us_waiting_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError) as caught:
            read_bounded(path)
        assert caught.value.strerror == "no plain file"
    for path, told in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")):
        with pytest.raises(OSError) as caught:
            read_bounded(path)
        assert caught.value.strerror == told


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 200_000], ids=["empty", "cut", "binary", "deep"])
def test_what_is_no_json_is_a_value_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    assert read_bounded(path) == raw
    with pytest.raises(ValueError):
        read_json(path)


@pytest.mark.parametrize(
    ("raw", "told"),
    [(b"{}" + b" " * SIDECAR_BYTES, "over 1048576 bytes"), (b"[" * 200_000, "nested too deep"), (b"[]", "no JSON obj")],
    ids=["long", "deep", "list"],
)
def test_a_manifest_beside_an_engine_that_is_none(tmp_path: Path, raw: bytes, told: str) -> None:
    engine = tmp_path / "x.engine"
    assert sidecar(engine) is None
    (tmp_path / "x.engine.json").write_bytes(raw)
    with pytest.raises(UserError, match=told) as caught:
        sidecar(engine)
    assert caught.value.remedy == "build the engine again"


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
        "import sys, time; from pathlib import Path; from runtime.files import replacing\n"
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


def test_a_lock_on_a_file_or_a_folder_excludes_the_next(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "lock"):
        with locked(path, wait=False):
            with pytest.raises(BlockingIOError), locked(path, wait=False):
                pass
            assert path.exists()
        with locked(path, wait=False) as descriptor:
            assert os.fstat(descriptor).st_ino == path.stat().st_ino
