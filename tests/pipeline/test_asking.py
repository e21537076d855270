"""`demport ask` without a server at hand: images as a model takes them, how answers are compared, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.release_index import ImageInput, PublishedModel, write_index
from pipeline import asking, cli
from runtime.errors import UserError


def wanted(channels: int = 1, dtype: Any = "uint8", high: float = 16.0) -> ImageInput:
    return ImageInput(height=8, width=8, channels=channels, dtype=dtype, high=high)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Red on the left, white on the right, 16x16."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[:, :8, 1:] = 0
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_an_image_is_scaled_in_size_and_range(picture: Path) -> None:
    grey = asking.load_image(picture, wanted())
    assert (str(grey.dtype), grey.shape, int(grey[4, 7, 0])) == ("uint8", (8, 8, 1), 16)
    assert int(grey[4, 0, 0]) == round(0.299 * 16)  # ITU-R 601, Pillow's grey
    colour = asking.load_image(picture, wanted(3, "float32", 1.0))
    assert colour.dtype == np.float32 and colour[4, 0].tolist() == [1.0, 0.0, 0.0]


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 9)
    for name in ("x.png", "absent.png"):
        with pytest.raises(UserError, match=r"cannot be read: .*; an image; give a PNG or JPEG"):
            asking.load_image(tmp_path / name, wanted())
    with pytest.raises(UserError, match="a model of 2 channels"):
        asking.load_image(tmp_path / "x.png", wanted(2))


def tensor(data: list[Any], kind: str = "FP32") -> dict[str, Any]:
    return {"name": "logits", "datatype": kind, "shape": [1, len(data)], "data": data}


def test_differences_are_relative_to_the_largest_value() -> None:
    recorded = tensor([1.0, -4.0])
    assert asking._difference(recorded, tensor([1.0, -4.4])) == pytest.approx(0.1)
    assert asking._difference(recorded, tensor([1.0, -4.0])) == 0.0
    assert asking._difference(tensor(["a"], "BYTES"), tensor(["a"], "BYTES")) == 0.0


@pytest.mark.parametrize(
    "answer", [None, tensor([1.0]), tensor([1, -4], "INT64"), tensor([1.0, math.nan]), tensor([math.inf, -4.0])]
)
def test_other_types_shapes_and_no_numbers_are_wrong(answer: dict[str, Any] | None) -> None:
    assert asking._difference(tensor([1.0, -4.0]), answer) == math.inf
    assert asking._difference(tensor(["a"], "BYTES"), tensor(["b"], "BYTES")) == math.inf


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """An index without recorded answers."""
    folder = tmp_path / "models"
    folder.mkdir()
    model = PublishedModel(name="net", platform="onnxruntime_onnx", max_batch_size=1, sha256={})
    write_index(folder, "triton", 1, [model])
    return folder


def test_errors_are_one_line(published: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:9"
    cases = [
        (["ask", url, published], "holds no recorded answers"),
        (["ask", url, published, "--model", "other"], "no model 'other'; one of net"),
        (["ask", url, published, "--image", picture], "takes no images"),
        (["ask", url, published.parent], "demport.json cannot be read"),
    ]
    for arguments, message in cases:
        assert cli.command_line([str(word) for word in arguments]) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1


def test_nobody_there_and_other_addresses(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (published / "net").mkdir()
    for name in ("sample-request.json", "sample-response.json"):
        (published / "net" / name).write_text('{"inputs": [], "outputs": []}')
    for url, message in (
        ("http://127.0.0.1:9", "no server is ready there; a server ready within 0.2 s"),
        ("ftp://127.0.0.1", "http://host:port"),
        ("http://127.0.0.1:99999999", "http://host:port"),
    ):
        assert cli.command_line(["ask", url, str(published), "--wait", "0.2"]) == 2
        assert message in capsys.readouterr().err
