"""A published folder is whole at every moment, also when its maker is killed; the one before can be put back."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from export.serving import releases
from export.serving.release_index import PublishedModel, read_index, write_index
from export.serving.releases import exchange, new_release, rollback
from runtime.errors import UserError

MODEL = PublishedModel(name="net", platform="onnxruntime_onnx", max_batch_size=1, sha256={})


def release(directory: Path, text: str, *, replace: bool = False) -> str:
    with new_release(directory, replace=replace) as made:
        (made.folder / "net").mkdir()
        (made.folder / "net" / "model").write_text(text)
        write_index(made.folder, "triton", made.serial, [MODEL])
    return made.swap


def content(directory: Path) -> str:
    return (directory / "net" / "model").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchanged", "renamed"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put a folder in place: the kernel's exchange, and where a file system has none."""
    if request.param == "renamed":
        monkeypatch.setattr(releases, "exchange", lambda first, second: False)
    return str(request.param)


def test_publish_replace_and_roll_back_and_forth(tmp_path: Path, swap: str) -> None:
    here = tmp_path / "models"
    assert release(here, "first") == "new"
    assert release(here, "second", replace=True) == swap
    assert release(here, "third", replace=True) == swap
    assert (content(here), content(tmp_path / ".models.previous")) == ("third", "second")
    assert rollback(here)[1] == swap
    assert (content(here), read_index(here).serial) == ("second", 2)
    assert rollback(here)[0].serial == 3
    assert content(here) == "third"
    assert names(tmp_path) == [".models.previous", "models"]


def test_a_rolled_back_release_is_newer_than_what_it_replaces(tmp_path: Path) -> None:
    """A server that polls reloads what has a later time than before."""
    here = tmp_path / "models"
    release(here, "first")
    release(here, "second", replace=True)
    newest = max(path.stat().st_mtime_ns for path in here.rglob("*"))
    rollback(here)
    assert content(here) == "first"
    assert all(path.stat().st_mtime_ns > newest for path in here.rglob("*"))


def test_serials_never_repeat(tmp_path: Path) -> None:
    here = tmp_path / "models"
    release(here, "first")
    release(here, "second", replace=True)
    rollback(here)
    release(here, "third", replace=True)
    assert read_index(here).serial == 3
    assert read_index(tmp_path / ".models.previous").serial == 1


def test_nothing_to_roll_back_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models has no release before it"):
        rollback(tmp_path / "models")
    release(tmp_path / "models", "first")
    with pytest.raises(UserError, match="models has no release before it; one that was replaced"):
        rollback(tmp_path / "models")
    assert content(tmp_path / "models") == "first"


@pytest.mark.parametrize("harm", ["changed", "added", "removed", "linked"])
def test_a_tampered_release_is_not_rolled_back_to(tmp_path: Path, harm: str) -> None:
    here, before = tmp_path / "models", tmp_path / ".models.previous"
    release(here, "first")
    release(here, "second", replace=True)
    victim = before / "net" / "model"
    if harm == "changed":
        victim.write_text("evil!")
    elif harm == "added":
        (before / "net" / "extra.py").write_text("evil")
    else:
        victim.unlink()
        if harm == "linked":
            (tmp_path / "same").write_text("first")
            victim.symlink_to(tmp_path / "same")
    with pytest.raises(UserError, match=r"was changed|holds|lacks"):
        rollback(here)
    assert content(here) == "second"


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """From the `count`-th step of the file system on, nothing happens any more: as after kill -9."""
    left = [count]

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args, **options)

        return step

    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr(releases, "exchange", dying(releases.exchange))
    monkeypatch.setattr(shutil, "rmtree", dying(shutil.rmtree))


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("action", ["replace", "rollback"])
def test_killed_at_any_step_and_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str, action: str, step: int
) -> None:
    here = tmp_path / "models"
    release(here, "first")
    release(here, "second", replace=True)
    with monkeypatch.context() as patch:
        if swap == "renamed":
            patch.setattr(releases, "exchange", lambda first, second: False)
        kill_at(patch, step)
        try:
            if action == "replace":
                release(here, "third", replace=True)
            else:
                rollback(here)
        except Killed:
            pass
    if swap == "exchanged":
        assert content(here) in {"first", "second", "third"}  # whole at every moment
    assert rollback(here)[0].serial in (1, 2, 3)
    before = content(here)
    assert release(here, "last", replace=True) in ("exchanged", "renamed")
    assert (content(here), content(tmp_path / ".models.previous")) == ("last", before)
    assert names(tmp_path) == [".models.previous", "models"]


def test_a_failure_while_filling_leaves_the_old_release(tmp_path: Path) -> None:
    here = tmp_path / "models"
    release(here, "first")
    with pytest.raises(RuntimeError, match="half-way"), new_release(here, replace=True) as made:
        (made.folder / "half").write_text("half")
        raise RuntimeError("half-way")
    assert content(here) == "first"
    assert names(tmp_path) == ["models"]


def test_readers_never_miss_it(tmp_path: Path) -> None:
    here = tmp_path / "models"
    release(here, "0")
    assert exchange(here, here) or os.uname().sysname != "Linux"
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(content(here))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 60):
            release(here, str(number), replace=True)
    finally:
        stop.set()
        reader.join()
    assert len(seen) > 5
    assert content(here) == "59"


def test_two_at_once(tmp_path: Path) -> None:
    with new_release(tmp_path / "models", replace=False) as made:
        with pytest.raises(UserError, match="another process publishes there"):
            release(tmp_path / "models", "second")
        (made.folder / "net").mkdir()
        (made.folder / "net" / "model").write_text("first")
        write_index(made.folder, "triton", made.serial, [MODEL])
    assert content(tmp_path / "models") == "first"


def test_a_file_in_the_way_and_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file/models: File exists"):
        release(tmp_path / "file" / "models", "first")
    release(tmp_path / "models", "first")

    def busy(first: Path, second: Path) -> bool:
        raise OSError(errno.EBUSY, "Device or resource busy", str(first))

    monkeypatch.setattr(releases, "exchange", busy)
    with pytest.raises(UserError, match="busy; a folder that can be replaced, no file or a mount point"):
        release(tmp_path / "models", "second", replace=True)
    assert content(tmp_path / "models") == "first"
    assert names(tmp_path) == ["file", "models"]


def test_a_full_disk(small_disk: Path) -> None:
    release(small_disk / "models", "first")
    with pytest.raises(UserError, match="no space left on the disk"):
        release(small_disk / "models", "x" * (10 << 20), replace=True)
    assert content(small_disk / "models") == "first"
    assert names(small_disk) == ["models"]


def test_a_folder_without_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` and `..` are taken by their real names; the root folder has none."""
    here = tmp_path / "models"
    (here / "inner").mkdir(parents=True)
    for where, name in ((here, "."), (here / "inner", "..")):
        monkeypatch.chdir(where)
        with pytest.raises(UserError, match=r"models (exists|holds no demport\.json)"):
            release(Path(name), "first", replace=name == ".")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(here)
    release(here, "first")
    monkeypatch.chdir(here)
    assert release(Path(), "second", replace=True) in ("exchanged", "renamed")
    assert (content(here), content(tmp_path / ".models.previous")) == ("second", "first")
    for act in (lambda: release(Path("/"), "x", replace=True), lambda: rollback(Path("/"))):
        with pytest.raises(UserError, match="/ is the root folder; a folder that can be replaced"):
            act()
