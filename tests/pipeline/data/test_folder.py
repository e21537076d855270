"""Folders of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pipeline import config
from pipeline.data import fingerprint, load
from pipeline.data.tree import SUFFIXES
from runtime.errors import UserError
from tests.pipeline.data.sets import whole


def write_images(folder: Path, size: tuple[int, int] = (12, 10)) -> None:
    """train: 3 + 2 images, val: 1 + 1; the blue channel holds the class, red and green vary."""
    rng = np.random.RandomState(3)
    for part, counts in (("train", {"ant": 3, "bee": 2}), ("val", {"ant": 1, "bee": 1})):
        for label, (name, count) in enumerate(counts.items()):
            (folder / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.randint(0, 255, (*size, 3)).astype(np.uint8)
                pixels[..., 2] = 100 * label
                Image.fromarray(pixels).save(folder / part / name / f"{k}.png")


def test_an_image_folder_takes_the_size_of_its_first_image(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = load(config.Data(source=f"imagefolder:{tmp_path}"))
    assert (data.names, data.input_shape, data.scale) == (("ant", "bee"), (3, 12, 10), 255.0)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    x, y = whole(data)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert data.mean[2] == pytest.approx(2 * 100 / 255 / 5)
    assert torch.equal(y, data.train.labels)
    first = np.asarray(Image.open(tmp_path / "train" / "ant" / "0.png"))
    assert x[0, 0, 3, 2].item() == pytest.approx((first[3, 2, 0] / 255 - data.mean[0]) / data.std[0], abs=1e-5)


def test_an_image_folder_is_resized_shuffled_and_augmented_by_seed(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = load(config.Data(source=f"imagefolder:{tmp_path}", image_size=8))
    assert data.input_shape == (3, 8, 8)
    one, two, other = (
        [x for x, _ in data.train.batches(2, seed=4, epoch=epoch, augment="crop_flip")] for epoch in (0, 0, 1)
    )
    assert [len(x) for x in one] == [2, 2]
    assert torch.equal(torch.cat(one), torch.cat(two))
    assert not torch.equal(torch.cat(one), torch.cat(other))


def test_the_middle_is_cut_out_of_an_image_resized_to_more(tmp_path: Path) -> None:
    """12x10 pixels, shorter side to 9: 10x9, as Pillow resizes; its middle 8x8 begins at row 1 and column 0."""
    write_images(tmp_path)
    data = load(config.Data(source=f"imagefolder:{tmp_path}", image_size=8, resize=9))
    assert data.input_shape == (3, 8, 8)
    ((x, _),) = data.test.batches(2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    for row, name in zip(x, ("ant", "bee"), strict=True):
        with Image.open(tmp_path / "val" / name / "0.png") as image:
            expected = np.asarray(image.resize((9, 10), Image.Resampling.BILINEAR).crop((0, 1, 8, 9)))
        pixels = ((row * std + mean) * 255).permute(1, 2, 0).round().to(torch.uint8)
        assert np.array_equal(pixels.numpy(), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "imagefolder:x", "image_size": 8, "resize": 7},
        {"source": "imagefolder:x", "resize": 7},
        {"image_size": 8, "resize": 9},
    ],
)
def test_a_middle_that_is_not_there_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"resize \d with data\.source .* and image_size"):
        config.Data.model_validate(wrong)


def test_a_grey_image_becomes_three_channels_and_files_that_are_no_images_are_ignored(tmp_path: Path) -> None:
    write_images(tmp_path)
    Image.fromarray(np.full((12, 10), 7, np.uint8)).save(tmp_path / "train" / "ant" / "grey.png")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    data = load(config.Data(source=f"imagefolder:{tmp_path}"))
    assert len(data.train) == 6
    assert whole(data)[0].shape == (6, 3, 12, 10)


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    for broken, name in ((b"not an image", "val/bee/0.png"), (None, "train/bee/1.png")):
        path = tmp_path / name
        sound = path.read_bytes()
        path.write_bytes(sound[: len(sound) // 2] if broken is None else broken)
        with pytest.raises(UserError, match=f"{name} cannot be decoded"):
            for split in ("train", "test"):
                whole(load(config.Data(source=f"imagefolder:{tmp_path}")), split)
        path.write_bytes(sound)
    assert len(whole(load(config.Data(source=f"imagefolder:{tmp_path}")), "test")[0]) == 2


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO"])
def test_only_the_formats_of_image_folders_are_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called, and without a call of the other format's reader."""
    write_images(tmp_path)
    Image.new("RGB", (16, 16)).save(tmp_path / "train" / "ant" / "0.png", kind)
    asked: list[str] = []
    reader, accept = Image.OPEN[kind]

    def spy(*given: Any) -> Any:
        asked.append(kind)
        return reader(*given)

    monkeypatch.setitem(Image.OPEN, kind, (spy, accept))
    with pytest.raises(UserError, match=r"train/ant/0\.png cannot be decoded .*; one of JPEG, PNG, ") as caught:
        load(config.Data(source=f"imagefolder:{tmp_path}", image_size=8))
    assert asked == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_that_is_listed_is_read(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path)
    grey = suffix == ".pgm"
    Image.new("L" if grey else "RGB", (10, 12), 200 if grey else (200, 10, 10)).save(tmp_path / f"x{suffix}")
    (tmp_path / f"x{suffix}").rename(tmp_path / "train" / "ant" / f"9{suffix}")
    data = load(config.Data(source=f"imagefolder:{tmp_path}"))
    red = whole(data)[0][3, 0] * data.std[0] + data.mean[0]
    assert len(data.train) == 6
    assert red.mean().item() == pytest.approx(200 / 255, abs=0.02)


def test_a_gif_called_jpg_is_read(tmp_path: Path) -> None:
    write_images(tmp_path)
    Image.new("RGB", (10, 12), (255, 0, 0)).save(tmp_path / "train" / "ant" / "9.jpg", "GIF")
    data = load(config.Data(source=f"imagefolder:{tmp_path}"))
    assert len(data.train) == 6 and len(whole(data)[0]) == 6


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    Image.new("RGB", (5, 12)).save(tmp_path / "val" / "ant" / "0.png")
    data = load(config.Data(source=f"imagefolder:{tmp_path}"))
    with pytest.raises(UserError, match=r"val/ant/0.png is 12x5 pixels; 12x10 like the first image; set data.image_s"):
        whole(data, "test")
    assert len(whole(data)[0]) == 5


def remove(path: Path) -> None:
    for one in path.iterdir():
        one.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: remove(d / "train" / "ant"), r"train/ant holds no image"),
        (lambda d: remove(d / "val" / "bee"), r"val/bee holds no image"),
        (lambda d: (d / "val" / "cow").mkdir(), r"val/cow is no class of train/; one of ant, bee"),
        (lambda d: (d / "val").rename(d / "test"), r"there is no folder .*val"),
        (lambda d: (d / "train" / "bee").rename(d / "bee"), r"train holds 1 class folders; at least two"),
    ],
)
def test_a_fault_in_the_folders_is_named(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    write_images(tmp_path)
    assert len(load(config.Data(source=f"imagefolder:{tmp_path}")).test) == 2
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        load(config.Data(source=f"imagefolder:{tmp_path}"))


def test_fingerprint_of_a_folder_follows_names_and_content(tmp_path: Path) -> None:
    """Also of files of the same size whose times were set back; not times alone, which a copy changes."""
    write_images(tmp_path / "set")
    section = config.Data(source=f"imagefolder:{tmp_path / 'set'}", root=str(tmp_path))
    first = fingerprint(section)
    assert first == fingerprint(section) == load(section).fingerprint
    path = tmp_path / "set" / "val" / "ant" / "0.png"
    before, status = path.read_bytes(), path.stat()
    os.utime(path, ns=(1, 1))
    assert fingerprint(section) == first
    path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == len(before) and fingerprint(section) != first
    path.write_bytes(before)
    assert fingerprint(section) == first
    path.rename(path.with_name("1.png"))
    assert fingerprint(section) != first
