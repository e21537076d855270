"""Sets in memory: layout, normalisation, and the message for every fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.data import fingerprint, load
from runtime.errors import UserError
from tests.pipeline.data.sets import Arrays, arrays, saved, whole


def test_npz_of_uint8_is_divided_by_255_and_laid_out_as_channels_first(tmp_path: Path) -> None:
    content = arrays()
    data = load(saved(tmp_path, content | {"names": np.array(["cat", "dog"])}))
    assert (data.names, data.input_shape, data.scale) == (("cat", "dog"), (3, 6, 5), 255.0)
    pixels = content["x_train"].astype(np.float64) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)).tolist(), rel=1e-9)
    x, y = whole(data)
    assert x[5, 2, 4, 1].item() == pytest.approx((pixels[5, 4, 1, 2] - data.mean[2]) / data.std[2], abs=1e-5)
    assert torch.equal(y, torch.arange(8) % 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_of_floats_keeps_its_range(tmp_path: Path, dtype: type[np.generic]) -> None:
    content = arrays(dtype, channels=None)
    data = load(saved(tmp_path, content))
    assert (data.names, data.input_shape, data.scale) == (("0", "1"), (1, 6, 5), 1.0)
    assert data.mean[0] == pytest.approx(content["x_train"].astype(np.float64).mean(), rel=1e-9)


def test_image_size_resizes_the_shorter_side_and_cuts_the_middle(tmp_path: Path) -> None:
    section = saved(tmp_path, arrays()).model_copy(update={"image_size": 10})
    data = load(section)
    assert data.input_shape == (3, 10, 10)
    assert next(iter(data.test.batches(4)))[0].shape == (4, 3, 10, 10)


def test_fingerprint_of_npz_follows_the_bytes(tmp_path: Path) -> None:
    content = arrays()
    first = fingerprint(saved(tmp_path, content))
    assert first == fingerprint(saved(tmp_path, content))
    content["x_test"][0, 0, 0, 0] ^= 1
    assert first != fingerprint(saved(tmp_path, content))


def set_at(key: str, at: Any, value: Any) -> Callable[[Arrays], None]:
    def change(content: Arrays) -> None:
        content[key] = content[key].copy()
        content[key][at] = value

    return change


def replaced(**new: Any) -> Callable[[Arrays], None]:
    return lambda content: content.update(new)


def as_float(content: Arrays) -> None:
    for key in ("x_train", "x_test"):
        content[key] = content[key].astype(np.float32)


def then(*changes: Callable[[Arrays], None]) -> Callable[[Arrays], None]:
    def change(content: Arrays) -> None:
        for one in changes:
            one(content)

    return change


FAULTS: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing key": (lambda c: c.pop("y_test"), r"has no y_test \(it has x_train, y_train, x_test\)"),
    "object array": (
        replaced(x_train=np.array([[1], "a"], dtype=object)),
        "x_train is an object array",
    ),
    "integers of another type": (replaced(x_train=np.zeros((8, 6, 5, 3), np.int64)), "x_train has type int64"),
    "five axes": (replaced(x_test=np.zeros((4, 6, 5, 3, 1), np.uint8)), r"x_test has shape \(4, 6, 5, 3, 1\)"),
    "no image": (replaced(x_test=np.zeros((0, 6, 5, 3), np.uint8)), r"x_test has shape \(0, 6, 5, 3\)"),
    "channels first": (replaced(x_train=np.zeros((8, 3, 6, 5), np.uint8)), r"may be \(N, C, H, W\) or \(N, H, W, C\)"),
    "other size in test": (replaced(x_test=np.zeros((4, 6, 6, 3), np.uint8)), r"x_test uint8 \(4, 3, 6, 6\)"),
    "other type in test": (replaced(x_test=np.zeros((4, 6, 5, 3), np.float32)), "x_test float32"),
    "nan": (then(as_float, set_at("x_train", (5, 1, 1, 0), np.nan)), "image 5 of .*x_train holds NaN"),
    "infinity": (then(as_float, set_at("x_test", (2, 1, 1, 0), np.inf)), "image 2 of .*x_test holds NaN or inf"),
    "beyond float32": (
        then(
            replaced(x_test=np.zeros((4, 6, 5, 3), np.float64)),
            set_at("x_test", (1, 0, 0, 0), 1e300),
            lambda c: c.update(x_train=c["x_train"].astype(np.float64)),
        ),
        "image 1 of .*x_test holds NaN or inf",
    ),
    "constant channel": (set_at("x_train", (..., 1), 9), "channel 1 of .*x_train has the same value"),
    "float labels": (replaced(y_train=np.zeros(8)), "y_train has type float64"),
    "lengths": (replaced(y_train=np.zeros(7, np.int64)), r"y_train has shape \(7,\); \(8,\)"),
    "column of labels": (replaced(y_test=np.zeros((4, 1), np.int64)), r"y_test has shape \(4, 1\)"),
    "negative label": (set_at("y_test", 3, -2), "label 3 of .*y_test is -2"),
    "unknown class in test": (set_at("y_test", 1, 7), r"label 1 of .*y_test is 7; 0 to 1 \(2 classes in y_train\)"),
    "label beyond the names": (
        then(replaced(names=np.array(["a", "b"])), set_at("y_train", 4, 2)),
        r"label 4 of .*y_train is 2; 0 to 1 \(2 classes named\)",
    ),
    "empty class": (set_at("y_train", slice(None), [0, 2] * 4), r"class 1 \(1\) of .* has no training image"),
    "empty named class": (replaced(names=np.array(["a", "b", "bird"])), r"class 2 \(bird\) .* no training image"),
    "one class": (then(replaced(y_train=np.zeros(8, int), y_test=np.zeros(4, int))), "has one class"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_npz_is_named(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    content = arrays()
    change(content)
    section = saved(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        load(section)
    assert "set.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    section = saved(tmp_path, arrays())
    path = tmp_path / "set.npz"
    sound = path.read_bytes()
    for broken in (sound[:-30], sound[: len(sound) // 2], b"", b"hello", b"\x80\x04K\x01.", sound[:600] + bytes(99)):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="cannot be read"):
            load(section)
    middle = bytearray(sound)
    middle[200:260] = bytes(60)
    path.write_bytes(middle)
    with pytest.raises(UserError, match=r"set.npz: x_train cannot be read"):
        load(section)
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(UserError, match="holds one array"):
        load(section)


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.npz, which is no file"):
        load(config.Data(source=f"npz:{tmp_path / 'no.npz'}"))
    with pytest.raises(UserError, match=r"none, which is no folder"):
        load(config.Data(source=f"imagefolder:{tmp_path / 'none'}"))


def test_real_fashion_mnist_as_npz(tmp_path: Path, real_data: Path) -> None:
    content: Arrays = {}
    for part in ("train", "test"):
        with np.load(real_data / "fashion_mnist" / f"fashion_mnist_{part}.npz", allow_pickle=False) as file:
            content |= {f"x_{part}": file["x"], f"y_{part}": file["y"], "names": file["names"]}
    data = load(saved(tmp_path, content))
    assert (len(data.train), len(data.test), len(data.names)) == (60_000, 10_000, 10)
    assert [round(data.mean[0], 4), round(data.std[0], 4)] == [0.286, 0.353]


def test_square_patches_of_many_bands_are_read_and_a_layout_can_be_settled(tmp_path: Path) -> None:
    content = arrays() | {"x_train": np.random.RandomState(0).rand(8, 3, 3, 12), "x_test": np.ones((4, 3, 3, 12))}
    assert load(saved(tmp_path, content)).input_shape == (12, 3, 3)
    first = saved(tmp_path, content).model_copy(update={"channels_first": True})
    assert load(first).input_shape == (3, 3, 12)
