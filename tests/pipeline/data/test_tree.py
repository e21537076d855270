"""Which files of an image folder are read, and that a change of any of them is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config
from pipeline.data import fingerprint, load
from pipeline.data.digests import of_tree
from runtime.errors import UserError
from tests.pipeline.data.test_folder import write_images


@pytest.fixture
def section(tmp_path: Path) -> config.Data:
    write_images(tmp_path / "set")
    return config.Data(source=f"imagefolder:{tmp_path / 'set'}", root=str(tmp_path / "cache"))


def test_subfolders_and_jfif_are_read_and_what_is_left_out_is_counted(section: config.Data, tmp_path: Path) -> None:
    ant = tmp_path / "set" / "train" / "ant"
    (ant / "more" / "yet").mkdir(parents=True)
    Image.new("RGB", (10, 12)).save(ant / "more" / "yet" / "a.jfif", "JPEG")
    for name in ("notes.txt", "more/list.txt", "more/raw.cr2", ".hidden"):
        (ant / name).write_text("x")
    data = load(section)
    note, other = data.notes
    assert ": 6 images in 2 classes; " in note and other.endswith("2 images in 2 classes")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert "3 files left out, which are no images by their name (2 .txt, 1 .cr2)" in note


def test_files_behind_links_count(section: config.Data, tmp_path: Path) -> None:
    inside, store = tmp_path / "set" / "val" / "ant", tmp_path / "store"
    inside.rename(store)
    inside.symlink_to(store)
    first = fingerprint(section)
    Image.fromarray(np.full((12, 10, 3), 9, np.uint8)).save(store / "0.png")
    assert fingerprint(section) != first and len(load(section).test) == 2
    (store / "round").symlink_to(store)
    with pytest.raises(UserError, match="leads back to a folder above it"):
        load(section)


def test_a_link_to_nothing_and_a_pipe_are_named(section: config.Data, tmp_path: Path) -> None:
    ant = tmp_path / "set" / "train" / "ant"
    (ant / "readme").symlink_to(tmp_path / "nowhere")
    assert len(load(section).train) == 5, "no image by its name"
    (ant / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.png: No such file or directory"):
        load(section)
    (ant / "gone.png").unlink()
    os.mkfifo(ant / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is no plain file"):
        load(section)


def test_a_file_name_of_bytes_is_read_and_a_class_of_bytes_refused(section: config.Data, tmp_path: Path) -> None:
    ant = tmp_path / "set" / "train" / "ant"
    (ant / "0.png").rename(ant / os.fsdecode(b"caf\xe9.png"))
    assert len(load(section).train) == 5
    ant.rename(os.fsdecode(os.fsencode(ant) + b"\xe9"))
    with pytest.raises(UserError, match=r"class folder 'ant\\udce9' of .*; a name of printable UTF-8 text"):
        load(section)


def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text(path.name)
    cache = tmp_path / "cache" / "digests.sqlite"
    monkeypatch.setattr("pipeline.data.digests.RACY_NS", -(10**18))  # as if they were old
    first = of_tree(tmp_path, paths, "rule", cache)
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return "00" * 32

    monkeypatch.setattr("pipeline.data.digests.sha256", noted)
    assert of_tree(tmp_path, paths, "rule", cache) == first and read == []
    status = paths[1].stat()
    paths[1].write_text("x")
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert of_tree(tmp_path, paths, "rule", cache) != first and read == [paths[1]]
    cache.write_bytes(b"no database" * 100)
    read.clear()
    of_tree(tmp_path, paths, "rule", cache)
    assert read == paths
