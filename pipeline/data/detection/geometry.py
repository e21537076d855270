"""Where boxes lie after an image was fitted to the network or augmented, by torchvision's tv_tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pipeline.data.augment import rows_of
from pipeline.data.dataset import Augment, Part
from runtime.errors import UserError
from runtime.images import Fit

VISIBLE = 0.25
"""A box of which less than this share is in the image is left out."""
SCALES = (0.5, 1.5)
"""How much resize_crop_flip enlarges an image."""
REFLECTED = "crop_flip"


@dataclass(frozen=True)
class Move:
    """What augmentation does to one image: enlarged about its middle, moved right and down by whole pixels, and then
    mirrored left to right."""

    right: int
    down: int
    scale: float
    mirrored: bool


def demand_moves(augment: Augment, key: str) -> None:
    """UserError for the one augmentation that boxes do not follow."""
    if augment == REFLECTED:
        raise UserError(
            f"{key} is {REFLECTED}, which mirrors objects at the border that have no box",
            "none, shift, zero_crop_flip or resize_crop_flip",
            "take zero_crop_flip",
        )


def moves(
    augment: Augment, size: tuple[int, int], random: np.random.Generator, n: int, part: Part
) -> list[Move | None]:
    """Of the rows `part` of a batch of `n` images of `size` (H, W)."""
    rows = rows_of(part)
    if augment == "none":
        return [None] * len(range(n)[rows])
    high, wide = (max(1, side // 8) for side in size)
    down, right = random.integers(-high, high + 1, n), random.integers(-wide, wide + 1, n)
    mirrored = random.random(n) < 0.5 if augment != "shift" else np.zeros(n, bool)
    scale: NDArray[np.float64] = random.uniform(*SCALES, n) if augment == "resize_crop_flip" else np.ones(n)
    drawn = zip(right[rows], down[rows], scale[rows], mirrored[rows], strict=True)
    return [Move(int(x), int(y), float(s), bool(m)) for x, y, s, m in drawn]


def fitted(boxes: NDArray[np.float64], height: int, width: int, fit: Fit | None) -> Tensor:
    """Boxes (M, 6) in shares of a picture of `height` and `width` -> float32 in pixels of the network's input."""
    pixels = torch.from_numpy(boxes.astype(np.float32))
    inner, (row, column) = ((height, width), (0, 0)) if fit is None else fit.placed(height, width)
    scale = torch.tensor([inner[1], inner[0], inner[1], inner[0]], dtype=torch.float32)
    pixels[:, :4] = pixels[:, :4] * scale - torch.tensor([column, row, column, row], dtype=torch.float32)
    return pixels if fit is None else inside(pixels, fit.size)


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (M, 6) cut at the borders of an image of `size` (H, W), without those that are hardly visible."""
    if not len(boxes):
        return boxes
    whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    cut = functional.clamp_bounding_boxes(_corners(boxes, size), clamping_mode="soft").as_subclass(Tensor)
    sides = cut[:, 2:] - cut[:, :2]
    visible = (sides[:, 0] * sides[:, 1] >= VISIBLE * whole) & (sides > 0).all(1)
    return torch.cat([cut, boxes[:, 4:]], 1)[visible]


def moved(image: Tensor, boxes: Tensor, move: Move | None, fill: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A uint8 image (C, H, W) and its boxes (M, 6) in pixels. From outside come pixels of value 0, and around an image
    that is made smaller `fill`."""
    if move is None:
        return image, boxes
    size = image.shape[1], image.shape[2]
    picture, corners = tv_tensors.Image(image), _corners(boxes, size)
    if move.scale == 1.0:
        picture, corners = (functional.crop(one, -move.down, -move.right, *size) for one in (picture, corners))
    else:
        how = 0.0, [float(move.right), float(move.down)], move.scale, [0.0, 0.0], v2.InterpolationMode.BILINEAR
        colour = [float(level) for level in fill[: image.shape[0]]]
        picture, corners = (functional.affine(one, *how, fill=colour) for one in (picture, corners))
    if move.mirrored:
        picture, corners = functional.horizontal_flip(picture), functional.horizontal_flip(corners)
    rows = torch.cat([corners.as_subclass(Tensor), boxes[:, 4:]], 1)
    return picture.as_subclass(Tensor), inside(rows, size)


def _corners(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Without the clamping that torchvision's functions do by themselves: what is left of a box is to be seen."""
    return tv_tensors.BoundingBoxes(boxes[:, :4], format="XYXY", canvas_size=size, clamping_mode=None)
