"""A small detector of the form FCOS for small images: a residual backbone, a pyramid of two levels, and two heads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.demo import Block
from runtime.errors import UserError

STRIDES = (4, 8)
PRIOR = 0.01
"""Probability of a class before training, as in RetinaNet (arXiv 1708.02002, section 4.1)."""


class Head(nn.Module):
    """Of one level: two convolutions, and then a class, a box and a centreness at every place.

    Levels share no weights: a batch norm that two levels share has the statistics of neither.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(*_convolution(width, width, 1), *_convolution(width, width, 1))
        self.cls_logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.bbox_regression = nn.Conv2d(width, 4, 3, padding=1)
        self.bbox_ctrness = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (N, H W, channels); distances to the sides of a box are positive, in strides."""
        x = self.tower(x)
        distances = F.softplus(self.bbox_regression(x))
        return _rows(self.cls_logits(x)), _rows(distances), _rows(self.bbox_ctrness(x))


class DemoDetector(nn.Module):
    """(N, C, H, W) -> the answer of a detector of FCOS' kind at strides of 4 and 8 pixels."""

    anchors: Tensor
    extent: Tensor

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(input_shape[0], width, 2))
        self.layer1 = Block(width, 2 * width, 2)
        self.layer2 = Block(2 * width, 4 * width, 2)
        self.lateral1 = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width))
        self.lateral2 = nn.Sequential(nn.Conv2d(4 * width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.head1, self.head2 = Head(2 * width, num_classes), Head(2 * width, num_classes)
        places = [[math.ceil(side / stride) for side in input_shape[1:]] for stride in STRIDES]
        anchors = [_squares(height, wide, stride) for (height, wide), stride in zip(places, STRIDES, strict=True)]
        self.register_buffer("anchors", torch.cat(anchors), persistent=False)
        extent = torch.tensor([input_shape[2], input_shape[1]] * 2, dtype=torch.float32)
        self.register_buffer("extent", extent, persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.layer1(self.stem(x))
        coarse = self.lateral2(self.layer2(fine))
        fine = self.lateral1(fine)
        fine = fine + F.interpolate(coarse, size=(fine.shape[2], fine.shape[3]), mode="nearest")
        first, second = self.head1(self.relu1(fine)), self.head2(self.relu2(coarse))
        names = ("cls_logits", "bbox_regression", "bbox_ctrness")
        joined = {name: torch.cat([first[index], second[index]], 1) for index, name in enumerate(names)}
        return {**joined, "anchors": self.anchors, "extent": self.extent}


def detector(*, num_classes: int, input_shape: tuple[int, int, int], width: int = 24) -> DemoDetector:
    """Of `width` channels in the stem, and up to four times as many behind."""
    if width < 1 or min(input_shape[1:]) < STRIDES[-1]:
        raise UserError(
            f"model.args of demo:detector are width {width}, for images of {input_shape[1]}x{input_shape[2]} pixels",
            f"a width of at least 1, and {STRIDES[-1]} pixels a side",
            "raise them",
        )
    return DemoDetector(input_shape, num_classes, width)


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def _squares(height: int, wide: int, stride: int) -> Tensor:
    """(H W, 4): a square of `stride` about the middle of every place."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(wide), indexing="ij")
    corner = torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4)
    return corner.to(torch.float32) * stride
