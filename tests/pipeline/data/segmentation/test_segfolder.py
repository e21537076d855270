"""Folders of images with masks: what is read, that both move together, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import config
from pipeline.data import fingerprint, load
from pipeline.data.dataset import Dataset, at_once
from runtime.errors import UserError


def write_pairs(folder: Path, size: tuple[int, int] = (16, 20), by_kind: bool = False) -> None:
    """train: 5, val: 2. The red level is 60 times the label, so that an image says its own mask."""
    random = np.random.Generator(np.random.PCG64(0))
    for part, count in (("train", 5), ("val", 2)):
        images, masks = (folder / k / part if by_kind else folder / part / k for k in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for k in range(count):
            labels = np.kron(random.integers(0, 3, (2, 2)), np.ones((size[0] // 2, size[1] // 2))).astype(np.uint8)
            pixels = random.integers(0, 255, (*size, 3)).astype(np.uint8)
            pixels[..., 0] = 60 * labels
            Image.fromarray(pixels).save(images / f"{k}.png")
            mask = Image.fromarray(labels).convert("P") if k % 2 else Image.fromarray(labels)
            if k % 2:
                mask.putdata(labels.reshape(-1).tolist())
            mask.save(masks / f"{k}{'_mask' if k == 3 else ''}.png")


def of(folder: Path, **keys: object) -> Dataset:
    return load(config.Data.model_validate({"source": f"segfolder:{folder}", **keys}))


def red(data: Dataset, x: torch.Tensor) -> torch.Tensor:
    """Levels 0..255."""
    return ((x[:, 0] * data.std[0] + data.mean[0]) * 255).round()


@pytest.mark.parametrize("by_kind", [False, True])
def test_masks_are_palette_indices_or_grey_levels(tmp_path: Path, by_kind: bool) -> None:
    write_pairs(tmp_path, by_kind=by_kind)
    data = of(tmp_path)
    assert (data.names, data.input_shape, data.targets) == (("0", "1", "2"), (3, 16, 20), "map")
    ((x, y),) = data.train.batches(5)
    assert y.dtype == torch.uint8 and y.shape == (5, 16, 20)
    assert torch.equal(red(data, x), 60.0 * y)
    (tmp_path / "classes.txt").write_text("sky\nsea\nland\nship\n")
    assert of(tmp_path).names == ("sky", "sea", "land", "ship")


@pytest.mark.parametrize("augment", ["shift", "crop_flip", "zero_crop_flip", "resize_crop_flip"])
def test_what_moves_an_image_moves_its_mask(tmp_path: Path, augment: str) -> None:
    write_pairs(tmp_path, (16, 16))
    data = of(tmp_path, image_size=16)
    batches = list(data.train.batches(5, seed=3, epoch=1, augment=augment))  # type: ignore[arg-type]
    again = list(data.train.batches(5, seed=3, epoch=1, augment=augment))  # type: ignore[arg-type]
    ((x, y),) = batches
    assert torch.equal(x, again[0][0]) and torch.equal(y, again[0][1])
    there = y != 255
    apart = (red(data, x) - 60.0 * y)[there].abs()
    if augment == "resize_crop_flip":  # resizing mixes pixels of an image at the border of two labels
        assert (
            float((apart > 30).float().mean()) < 0.1 and float(apart.max()) <= 90
        )  # at a corner of four labels 3/4 of 120
    else:
        assert float(apart.max()) == 0
    assert bool((~there).any()) == (augment in ("shift", "zero_crop_flip"))
    assert bool((red(data, x)[~there] == 0).all())


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_a_mask_is_fitted_as_its_image(tmp_path: Path, fit: str) -> None:
    write_pairs(tmp_path, (16, 32))
    data = of(tmp_path, image_size=8, fit=fit, background=(0, 0, 0))
    ((x, y),) = data.test.batches(2)
    assert y.shape == (2, 8, 8) and data.fit is not None
    there = y != 255
    apart = (red(data, x) - 60.0 * y)[there].abs()
    assert float((apart > 30).float().mean()) < 0.1 and float(apart.max()) <= 90  # borders of labels are mixed
    assert there[0, :, 0].tolist() == ([False] * 2 + [True] * 4 + [False] * 2 if fit == "letterbox" else [True] * 8)


def test_large_images_go_through_a_network_in_smaller_batches(tmp_path: Path) -> None:
    """32 images of 224x224 pixels are as many as 5,017 of 16x20, and 6 of 512x512."""
    write_pairs(tmp_path)
    data = of(tmp_path)
    assert at_once(data.train, 6000) == 32 * 224 * 224 // (16 * 20) == 5017 and at_once(data.train, 256) == 256
    large = of(tmp_path, image_size=512)
    assert at_once(large.train, 256) == 6
    halves = of(tmp_path, validation=0.4)
    assert halves.validation is not None and (len(halves.train), len(halves.validation)) == (3, 2)
    classes = load(config.Data(source="digits"))
    assert at_once(classes.train, 256) == 256


def remove(path: Path) -> None:
    path.unlink()


def other_size(path: Path) -> None:
    Image.fromarray(np.zeros((16, 19), np.uint8)).save(path)


def colours(path: Path) -> None:
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(path)


def text(path: Path) -> None:
    path.write_text("no picture")


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (remove, "val/masks/0.png", r"val/images/0.png has no mask; .*val/masks/0.png; add it"),
        (other_size, "train/masks/0.png", "train/masks/0.png is 16x19 pixels, and its image 0.png 16x20"),
        (
            colours,
            "val/masks/0.png",
            r"0.png cannot be read \(its pixels are RGB colours, no class numbers\)",
        ),
        (text, "train/masks/0.png", "train/masks/0.png cannot be read"),
    ],
)
def test_masks_that_will_not_do(tmp_path: Path, change: Callable[[Path], None], name: str, message: str) -> None:
    write_pairs(tmp_path)
    change(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        of(tmp_path)
    assert "\n" not in str(caught.value)


def test_labels_out_of_range_and_folders_that_are_not_there(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    before = fingerprint(config.Data(source=f"segfolder:{tmp_path}"))
    Image.fromarray(np.full((16, 20), 9, np.uint8)).save(tmp_path / "val" / "masks" / "1.png")
    with pytest.raises(UserError, match=r"val/masks/1.png has the label 9; 0 to 2 \(3 classes in the training masks\)"):
        of(tmp_path)
    assert fingerprint(config.Data(source=f"segfolder:{tmp_path}")) != before
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    with pytest.raises(UserError, match=r"has the label 2; 0 to 1 \(2 classes named in .*classes.txt\), or 255"):
        of(tmp_path)
    with pytest.raises(UserError, match="which is no folder; a folder of images and masks"):
        of(tmp_path / "none")
    (tmp_path / "empty" / "train" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there are images in .*, and no masks"):
        of(tmp_path / "empty")
    with pytest.raises(UserError, match="val has no images to train with; DIR/train/images"):
        of(tmp_path / "val")


def test_digits_on_canvases_have_a_mask() -> None:
    data = load(config.Data(source="canvases:masks"))
    assert (data.targets, data.input_shape, len(data.names)) == ("map", (1, 64, 64), 11)
    x, y = next(iter(data.test.batches(64)))
    assert set(y.flatten().tolist()) == set(range(11))
    assert float(x[:, 0][y > 0].mean()) > 1.0 > float(x[:, 0][y == 0].mean())  # ink is light
