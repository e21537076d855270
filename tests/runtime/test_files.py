"""A file that may be anything is read whole, up to a limit, or refused at once with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.backend import SIDECAR_BYTES, sidecar
from runtime.errors import UserError
from runtime.files import read_bounded, read_json


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
