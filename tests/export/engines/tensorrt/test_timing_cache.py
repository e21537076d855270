"""Timing caches: one file for each version and GPU, read and written under a lock, combined with what others wrote."""

from __future__ import annotations

import fcntl
import io
import threading
from pathlib import Path
from typing import Any

import pytest

from export.engines.tensorrt.timing_cache import attach, cache_path, save
from runtime.backends.trt_library import Log
from runtime.errors import UserError
from tests.export import standins

VERSION = "10.16.1.11"
OWN = f"{VERSION} own".encode()


def config_and_log() -> tuple[Any, Log]:
    trt = standins.module(VERSION)
    return trt.IBuilderConfig(), Log(trt, io.StringIO())


def test_a_file_for_each_version_and_gpu(tmp_path: Path) -> None:
    one = cache_path(tmp_path, "tensorrt", "10.13.3.9", "NVIDIA L4-SM89")
    assert one == tmp_path / "tensorrt-10.13.3.9-NVIDIA_L4-SM89.timing"
    assert cache_path(tmp_path, "tensorrt", "10.13.3.9", "../evil").parent == tmp_path
    assert cache_path(Path("~/x"), "tensorrt", "11.0.0", "A").is_absolute()


def test_what_two_builds_measured_ends_up_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.timing"
    first, log = config_and_log()
    second, _ = config_and_log()
    attach(first, path, log)._entries.add(OWN)
    attach(second, path, log)._entries.add(f"{VERSION} other".encode())
    save(first, path, log)
    save(second, path, log)
    assert path.read_bytes().split(b"\n") == sorted([OWN, f"{VERSION} other".encode()])
    assert log.notes == []
    assert sorted(item.name for item in path.parent.iterdir()) == ["x.timing", "x.timing.lock"]


def test_a_lock_held_elsewhere_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    config, log = config_and_log()
    attach(config, path, log)._entries.add(OWN)
    with (tmp_path / "x.timing.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        saving = threading.Thread(target=save, args=(config, path, log))
        saving.start()
        saving.join(0.2)
        assert saving.is_alive()
        assert not path.exists()
    saving.join(10)
    assert path.read_bytes() == OWN


def test_a_foreign_cache_is_told_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    path.write_bytes(b"8.6.1 old")
    config, log = config_and_log()
    assert attach(config, path, log)._entries == set()
    assert "x.timing is not one of this TensorRT and GPU" in log.notes[0]


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config, log = config_and_log()
    with pytest.raises(UserError, match=r"x\.timing cannot be used") as caught:
        attach(config, tmp_path / "file" / "x.timing", log)
    assert "engine.timing_cache" in caught.value.remedy
