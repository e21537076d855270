"""Order and augmentation of batches; both follow from (seed, epoch, batch) alone, whatever the device.

So a training goes on in the middle of an epoch as if it had never stopped, and several processes that share a batch
see the images that one process would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import WHOLE, Augment, Part

Integers = NDArray[np.int64]


def order_of(n: int, seed: int | None, epoch: int) -> Tensor:
    """int64 (n,): the positions of an epoch in their order, shuffled where there is a seed."""
    if seed is None:
        return torch.arange(n)
    return torch.from_numpy(np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n))


def batch_stream(seed: int, epoch: int, batch: int) -> np.random.Generator:
    """What the augmentation of one batch is drawn from."""
    return np.random.Generator(np.random.PCG64([seed, epoch, batch + 1]))


def batch_indices(
    n: int, batch_size: int, seed: int | None, epoch: int, first: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Number of each batch and its positions int64 (B,), from the batch `first` on.

    With a seed a last partial batch is dropped unless it is all.
    """
    assert batch_size >= 1, batch_size
    order = order_of(n, seed, epoch)
    for batch, start in enumerate(range(0, n, batch_size)):
        index = order[start : start + batch_size]
        if batch >= first and (seed is None or len(index) == batch_size or start == 0):
            yield batch, index


def rows_of(part: Part) -> slice:
    """Which rows of a batch are this process's."""
    return slice(part[0], None, part[1])


def augmented(
    x: Tensor, augment: Augment, random: np.random.Generator, n: int | None = None, part: Part = WHOLE
) -> Tensor:
    """x (B, C, H, W) of raw pixels, on any device: the rows `part` of a batch of `n` images (B where not given).

    shift: moved by up to 1/8 of the side, pixels of value 0 come in. crop_flip: the same with reflected borders, and
    mirrored left to right half of the time. zero_crop_flip: the same with borders of 0.
    """
    if augment == "none":
        return x
    assert augment != "resize_crop_flip", "images of one size are not resized"
    high, wide = (_reach(side) for side in x.shape[2:])
    rows, n = rows_of(part), len(x) if n is None else n
    down = random.integers(0, 2 * high + 1, n)[rows]
    right = random.integers(0, 2 * wide + 1, n)[rows]
    mirrored = np.zeros(n, dtype=bool) if augment == "shift" else random.random(n) < 0.5
    padding = (wide, wide, high, high)
    if augment == "crop_flip":
        padded = F.pad(x, padding, mode="reflect") if x.is_floating_point() else _reflected(x, padding)
    else:
        padded = F.pad(x, padding)
    return _windows(padded, down, right, mirrored[rows], (x.shape[2], x.shape[3]))


@dataclass(frozen=True)
class Crops:
    """How each image of a batch is resized and cropped: `side` the shorter side in pixels after resizing; `down` and
    `right` in [0, 1), the place of the window in what is left over; `mirrored` left to right. All (B,)."""

    side: Integers
    down: NDArray[np.float64]
    right: NDArray[np.float64]
    mirrored: NDArray[np.bool_]


def random_crops(size: int, random: np.random.Generator, n: int, part: Part = WHOLE) -> Crops:
    """Shorter side drawn from 8/7 to 15/7 of `size` (256 to 480 for 224), a window anywhere, mirrored half of the time:
    Simonyan and Zisserman, arXiv 1409.1556, section 3.1."""
    rows = rows_of(part)
    side = random.integers(round(size * 8 / 7), round(size * 15 / 7) + 1, n)[rows]
    down, right = random.random(n)[rows], random.random(n)[rows]
    return Crops(side, down, right, (random.random(n) < 0.5)[rows])


def _reach(side: int) -> int:
    """1/8 of the side, at least 1 pixel where the side allows reflection at all."""
    return min(max(1, side // 8), side - 1)


def _reflected(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Reflection by index: torch pads no integers that way."""
    left, right, top, bottom = padding
    rows = _mirror(torch.arange(-top, x.shape[2] + bottom), x.shape[2]).to(x.device)
    columns = _mirror(torch.arange(-left, x.shape[3] + right), x.shape[3]).to(x.device)
    return x[:, :, rows][:, :, :, columns]


def _mirror(position: Tensor, side: int) -> Tensor:
    position = position.abs()
    return torch.where(position >= side, 2 * (side - 1) - position, position)


def _windows(x: Tensor, top: Integers, left: Integers, mirrored: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """From each image its window of `size` (H, W) at (top, left), read from right to left where mirrored."""
    rows = torch.from_numpy(top[:, None] + np.arange(size[0])).to(x.device)
    across = np.where(mirrored[:, None], np.arange(size[1])[::-1], np.arange(size[1]))
    columns = torch.from_numpy(left[:, None] + across).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
