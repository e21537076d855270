"""Pictures as people see them: upright, opaque, of 8 bits; and where a picture lies in the one a network takes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import images
from runtime.errors import UserError
from runtime.images import Fit, read_picture

FORMATS = ("PNG", "JPEG", "TIFF")


def test_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 2))  # light above
    exif = picture.getexif()
    exif[0x0112] = 3  # stored upside down
    picture.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(read_picture(tmp_path / "a.png", FORMATS))
    assert upright[3].min() == 255 and upright[0].max() == 0
    exif[0x0112] = 6
    picture.save(tmp_path / "b.png", exif=exif)
    assert read_picture(tmp_path / "b.png", FORMATS).size == (4, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_the_background(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        picture = Image.new("P", (2, 1))
        picture.putpalette([10, 20, 30, 0, 0, 0])
        picture.putpixel((1, 0), 1)
        picture.save(tmp_path / "a.png", transparency=0)
    else:
        values = np.zeros((1, 2, len(mode)), np.uint8)
        values[0, 1, -1] = 255
        Image.fromarray(values, mode).save(tmp_path / "a.png")
    pixels = np.asarray(read_picture(tmp_path / "a.png", FORMATS, (1, 2, 3)))
    assert pixels[0].tolist() == [[1, 2, 3], [0, 0, 0]]


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png", FORMATS))[0, :, 1].tolist() == [0, 1, 128, 255]
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="pixels are floating-point numbers"):
        read_picture(tmp_path / "a.tif", FORMATS)


def test_what_is_no_picture_of_a_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    Image.new("1", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png cannot be decoded \(10x10 pixels, more than 99\)"):
        read_picture(tmp_path / "a.png", FORMATS)
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in (("pipe.png", "no plain file"), ("gone.png", "no such file")):
        with pytest.raises(UserError, match=f"{name} cannot be decoded .{why}"):
            read_picture(tmp_path / name, FORMATS)


STRIPES = np.zeros((12, 24, 3), np.uint8)
STRIPES[:, :6, 2] = STRIPES[:, 6:18, 1] = STRIPES[:, 18:, 0] = 200


def test_crop_takes_the_middle() -> None:
    picture = np.asarray(Fit("crop", (12, 12), 12)(Image.fromarray(STRIPES)))
    assert np.array_equal(picture, STRIPES[:, 6:18])
    assert Fit("crop", (224, 224), 256).placed(480, 640) == ((256, 341), (16, 58))


def test_letterbox_keeps_all_and_stretch_all_of_the_frame() -> None:
    boxed = np.asarray(Fit("letterbox", (12, 12), 12, (7, 8, 9))(Image.fromarray(STRIPES)))
    assert boxed[:3].reshape(-1, 3).tolist() == boxed[9:].reshape(-1, 3).tolist() == [[7, 8, 9]] * 36
    assert boxed[6, 0, 2] == boxed[6, 5, 1] == boxed[6, 11, 0] == 200
    stretched = np.asarray(Fit("stretch", (12, 12), 12)(Image.fromarray(STRIPES)))
    assert stretched[0, 0, 2] == stretched[0, 5, 1] == stretched[0, 11, 0] == 200
