"""Boxes move with their pixels: fitted to the network, and augmented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline import config
from pipeline.data import Augment, fingerprint, load
from pipeline.data.detection.geometry import Move, fitted, inside, moved
from pipeline.data.detection.split import Held, held
from runtime.errors import UserError
from runtime.images import Fit
from tests.pipeline.data.detection.folders import SIZES, write_coco, write_yolo

WHOLE = np.array([[0.0, 0.0, 1.0, 1.0, 1.0, 0.0]])


def tight(image: Tensor) -> list[int]:
    """The box around all pixels of a channel above 127."""
    rows, columns = (torch.nonzero((image[0] > 127).any(axis)).flatten() for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def test_a_letterbox_shrinks_and_moves_the_boxes() -> None:
    fit = Fit("letterbox", (20, 20), 20)
    assert fitted(WHOLE, 10, 40, fit).tolist() == [[0, 8, 20, 13, 1, 0]]  # 8 rows above the 5 of the picture
    assert fitted(WHOLE, 40, 20, fit).tolist() == [[5, 0, 15, 20, 1, 0]]


def test_a_stretch_and_a_crop() -> None:
    half = np.array([[0.0, 0.0, 0.5, 1.0, 0.0, 0.0], [0.9, 0.0, 1.0, 1.0, 0.0, 0.0]])
    assert fitted(half, 10, 40, Fit("stretch", (20, 20), 20))[0].tolist() == [0, 0, 10, 20, 0, 0]
    cropped = fitted(half, 20, 40, Fit("crop", (20, 20), 20))  # columns 10 to 30 stay
    assert cropped.tolist() == [[0, 0, 10, 20, 0, 0]], "the box that the crop leaves out is gone"


def test_a_box_that_is_hardly_visible_is_left_out() -> None:
    boxes = torch.tensor([[-6.0, 0, 2, 4, 1, 0], [-5.9, 0, 2.1, 4, 2, 0], [31.2, 0, 35.2, 4, 3, 0]])
    left = inside(boxes, (32, 32))
    assert left[:, 4].tolist() == [1, 2]
    assert left[0].tolist() == [0, 0, 2, 4, 1, 0]
    assert not len(inside(torch.tensor([[-6.1, 0, 2, 4, 1, 0]])[:1] - torch.tensor([0.1, 0, 0.1, 0, 0, 0]), (32, 32)))


@pytest.mark.parametrize("right, down, mirrored", [(3, -4, False), (-5, 2, True), (0, 0, True)])
def test_a_box_stays_around_what_it_was_around(right: int, down: int, mirrored: bool) -> None:
    image = torch.zeros(1, 32, 32, dtype=torch.uint8)
    image[0, 10:20, 8:14] = 255
    moved_image, boxes = moved(image, torch.tensor([[8.0, 10, 14, 20, 3, 0]]), Move(right, down, 1.0, mirrored), (0,))
    assert boxes.tolist() == [[*tight(moved_image), 3, 0]]
    assert int(moved_image.sum()) == 255 * 60


def test_an_enlarged_image_enlarges_its_boxes() -> None:
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    image[0, 20:40, 24:44] = 255
    for scale in (0.5, 1.5):
        larger, boxes = moved(image, torch.tensor([[24.0, 20, 44, 40, 3, 0]]), Move(4, -2, scale, False), (7,))
        assert boxes[0, :4].tolist() == pytest.approx(tight(larger), abs=1.0)
        assert boxes[0, 2] - boxes[0, 0] == 20 * scale
    assert int(larger.min()) == 0
    assert int(moved(image, boxes, Move(0, 0, 0.5, False), (7,))[0][0, 0, 0]) == 7


def test_both_layouts_give_the_same_batches(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    write_yolo(tmp_path / "yolo")
    sections = [
        config.Data(source=f"{kind}:{tmp_path / kind}", image_size=24, fit="letterbox") for kind in ("coco", "yolo")
    ]
    one, other = map(load, sections)
    assert one.input_shape == (3, 24, 24)
    ((x, boxes),) = one.train.batches(4)
    ((y, others),) = other.train.batches(4)
    assert torch.equal(x, y)
    assert boxes.shape == (3, 2, 6)
    assert boxes[..., :5] == pytest.approx(others[..., :5])
    assert boxes[0, 0].tolist() == pytest.approx([0.1, 9 / 24, 0.6, 15 / 24, 1, 0])  # 24 wide, 12 high, 6 rows above
    assert boxes[1, 1, 4] == boxes[2, 0, 4] == -1
    assert one.targets == "boxes"
    assert fingerprint(sections[0]) != fingerprint(sections[1])


@pytest.mark.parametrize("augment", ["shift", "zero_crop_flip", "resize_crop_flip"])
def test_processes_that_share_a_batch_see_the_images_of_one(augment: Augment) -> None:
    images = torch.randint(0, 255, (8, 1, 16, 16), dtype=torch.uint8)
    part = Held(images, tuple(torch.tensor([[2.0, 3, 9, 12, 0, 0]]) for _ in range(8)))
    split = held(part, part, ("a",), config.Data(), "0", "here").train
    whole = [*split.batches(4, seed=1, epoch=2, augment=augment)]
    shares = [[*split.batches(4, seed=1, epoch=2, augment=augment, part=(rank, 2))] for rank in (0, 1)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *shares, strict=True):
        assert torch.equal(x[::2], x0) and torch.equal(x[1::2], x1)
        assert torch.equal(y[::2], y0) and torch.equal(y[1::2], y1)
    rest = [*split.batches(4, seed=1, epoch=2, augment=augment, first=1)]
    assert torch.equal(rest[0][0], whole[1][0])
    assert not torch.equal(whole[0][0], next(split.batches(4, seed=1, epoch=3, augment=augment))[0])


def test_images_are_held_out_with_their_boxes(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    data = load(config.Data(source=f"yolo:{tmp_path}", image_size=24, validation=0.34))
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 3)
    ((_, trained),), ((_, held_back),) = data.train.batches(4), data.validation.batches(4)
    assert int((trained[..., 4] >= 0).sum()) + int((held_back[..., 4] >= 0).sum()) == 3


def test_what_boxes_do_not_follow_is_refused() -> None:
    images = torch.randint(0, 255, (2, 1, 16, 16), dtype=torch.uint8)
    part = Held(images, (torch.tensor([[2.0, 3, 9, 12, 0, 0]]),) * 2)
    split = held(part, part, ("a",), config.Data(), "0", "here").train
    with pytest.raises(UserError, match="mirrors objects at the border"):
        next(split.batches(2, seed=0, augment="crop_flip"))
    assert len(next(split.batches(2, seed=0, augment="zero_crop_flip"))[1]) == 2


def test_the_config_refuses_it_before_any_work() -> None:
    with pytest.raises(ValidationError, match="mirrors objects at the border") as error:
        config.Config.model_validate({"data": {"source": "canvases:boxes"}, "sparse": {"augment": "crop_flip"}})
    assert "take zero_crop_flip" in str(error.value)
    config.Config.model_validate({"data": {"source": "yolo:here"}, "dense": {"augment": "resize_crop_flip"}})


def test_images_that_are_not_as_annotated_are_one_line(tmp_path: Path) -> None:
    write_coco(tmp_path, lambda document: document["images"][2].update(height=17))
    with pytest.raises(UserError, match=r"2.png is 16x16 pixels, and its annotations are for 17x16"):
        load(config.Data(source=f"coco:{tmp_path}", image_size=24))
    (tmp_path / "train2017" / "1.png").write_text("no picture")
    with pytest.raises(UserError, match=r"1.png cannot be decoded"):
        load(config.Data(source=f"coco:{tmp_path}", image_size=24))
    assert len(set(SIZES)) == 3


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    with pytest.raises(UserError, match=r"1.png is 30x10 pixels") as error:
        load(config.Data(source=f"yolo:{tmp_path}"))
    assert error.value.remedy == "set data.image_size"


def test_the_canvases_are_a_source() -> None:
    data = load(config.Data(source="canvases:boxes"))
    assert data.input_shape == (1, 64, 64)
    assert data.names == tuple("0123456789")
    x, boxes = next(data.test.batches(4))
    assert x.shape == (4, 1, 64, 64)
    inked = [int(number) for number in (boxes[..., 4] >= 0).sum(1)]
    assert all(1 <= number <= 4 for number in inked)
