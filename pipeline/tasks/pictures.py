"""Pictures of what a network answers, for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.dataset import IGNORED

SIDE = 96
"""Pixels that a smaller image is enlarged to."""
GAP = 4
GREY = (128, 128, 128)
Picture = NDArray[np.uint8]


def four_of(
    image: Picture,
    mask: NDArray[Any],
    outputs: Sequence[Any],
    names: Sequence[str],
    *,
    classes: Callable[[torch.Tensor], torch.Tensor],
    ignored: int = IGNORED,
) -> Picture:
    """An image (H, W, 3) beside its mask (H, W), in grey where no label counts, and beside what each of `outputs`
    (1, ...) says of it; `classes`: outputs -> (1, H, W)."""
    colours = palette(max(len(names), 256))
    grey = (mask == IGNORED) | (mask == ignored)
    pictures = [image, np.where(grey[..., None], np.array(GREY, np.uint8), colours[mask.astype(int)])]
    pictures += [colours[classes(torch.as_tensor(one))[0].numpy().astype(int)] for one in outputs]
    return beside([enlarged(one) for one in pictures])


def enlarged(picture: Picture) -> Picture:
    """Each pixel as a square, so that the shorter side has SIDE pixels or more."""
    times = max(1, -(-SIDE // min(picture.shape[:2])))
    return picture.repeat(times, 0).repeat(times, 1)


def beside(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one height in a row, with white between them."""
    white = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)]
    return np.concatenate(parts[:-1], axis=1)


def palette(count: int) -> Picture:
    """uint8 (count, 3): the colours of PASCAL VOC's masks; class 0 is black. Bit i of a class is spread over the high
    bits of red, green and blue."""
    numbers, colours = np.arange(count), np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> channel) & 1) << (7 - bit)
        numbers = numbers >> 3
    return colours.astype(np.uint8)
