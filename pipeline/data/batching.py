"""Order and augmentation of batches; both follow from (seed, epoch) alone, whatever the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data import Augment


def random_stream(seed: int | None, epoch: int) -> np.random.Generator | None:
    return None if seed is None else np.random.Generator(np.random.PCG64([seed, epoch]))


def batch_indices(n: int, batch_size: int, random: np.random.Generator | None) -> Iterator[Tensor]:
    """Positions int64 (B,). Shuffled where there is a stream; a last partial batch is then dropped unless it is all."""
    assert batch_size >= 1, batch_size
    order = torch.arange(n) if random is None else torch.from_numpy(random.permutation(n))
    for start in range(0, n, batch_size):
        index = order[start : start + batch_size]
        if random is None or len(index) == batch_size or start == 0:
            yield index


def augmented(x: Tensor, augment: Augment, random: np.random.Generator) -> Tensor:
    """x (B, C, H, W) of raw pixels, on any device.

    shift: moved by up to 1/8 of the side, pixels of value 0 come in. crop_flip: the same with reflected borders, and
    mirrored left to right half of the time.
    """
    if augment == "none":
        return x
    high, wide = (_reach(side) for side in x.shape[2:])
    down = random.integers(0, 2 * high + 1, len(x))
    right = random.integers(0, 2 * wide + 1, len(x))
    padding = (wide, wide, high, high)
    if augment == "shift":
        padded = F.pad(x, padding)
        mirrored = np.zeros(len(x), dtype=bool)
    else:
        padded = F.pad(x, padding, mode="reflect") if x.is_floating_point() else _reflected(x, padding)
        mirrored = random.random(len(x)) < 0.5
    return _windows(padded, down, right, mirrored, (x.shape[2], x.shape[3]))


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


def _windows(x: Tensor, top: np.ndarray, left: np.ndarray, mirrored: np.ndarray, size: tuple[int, int]) -> Tensor:
    """From each image its window of `size` (H, W) at (top, left), read from right to left where mirrored."""
    rows = torch.from_numpy(top[:, None] + np.arange(size[0])).to(x.device)
    across = np.where(mirrored[:, None], np.arange(size[1])[::-1], np.arange(size[1]))
    columns = torch.from_numpy(left[:, None] + across).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
