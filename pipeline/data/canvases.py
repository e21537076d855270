"""Scenes without a download: scikit-learn's scanned digits, enlarged and pasted on grey canvases.

The digits of the test canvases are none of the training canvases', split as the source `digits` splits them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 64
TRAIN, TEST = 1200, 400
SEEDS = (20, 21)
"""Of the training and the test canvases."""
SIZES = (14, 28)
"""Smallest and largest height of a digit, pixels."""
MOST = 4
"""Digits on a canvas; there is one at least."""
INK = 0.35
"""Share of the darkest level from which a pixel belongs to the digit."""
GAP = 2
TRIES = 50


@dataclass(frozen=True)
class Canvases:
    """N grey canvases; a digit lies alone in its box."""

    images: NDArray[np.uint8]
    """(N, side, side)."""
    boxes: tuple[NDArray[np.float64], ...]
    """An image's: (M, 5), x1, y1, x2, y2 in pixels around the ink, and the digit."""
    classes: NDArray[np.uint8]
    """(N, side, side): 0 where there is no ink, else the digit + 1."""


def train_and_test() -> tuple[Canvases, Canvases]:
    from sklearn.datasets import load_digits

    from pipeline.data.sources import DIGITS_TRAIN

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.target))
    digits, labels = bunch.images[order].astype(np.float32) / 16, bunch.target[order]
    parts = slice(None, DIGITS_TRAIN), slice(DIGITS_TRAIN, None)
    train, test = (
        pasted(digits[part], labels[part], count, SIDE, seed)
        for part, count, seed in zip(parts, (TRAIN, TEST), SEEDS, strict=True)
    )
    return train, test


def pasted(digits: NDArray[np.float32], labels: NDArray[np.int64], count: int, side: int, seed: int) -> Canvases:
    """`count` canvases of `side` pixels with 1 to 4 of `digits` (K, 8, 8), ink 0..1, on uneven ground."""
    random = np.random.Generator(np.random.PCG64(seed))
    images = np.empty((count, side, side), np.uint8)
    classes = np.zeros((count, side, side), np.uint8)
    boxes = []
    for index in range(count):
        ink = np.zeros((side, side), np.float32)
        taken = np.zeros((side, side), bool)
        rows: list[list[float]] = []
        for which in random.integers(0, len(digits), random.integers(1, MOST + 1)):
            place = _place(digits[which], taken, random)
            if place is None:
                continue
            row, column, stamp = place
            window = slice(row, row + stamp.shape[0]), slice(column, column + stamp.shape[1])
            ink[window] = stamp
            classes[index][window][stamp >= INK] = labels[which] + 1
            taken[max(0, row - GAP) : window[0].stop + GAP, max(0, column - GAP) : window[1].stop + GAP] = True
            rows.append([column, row, window[1].stop, window[0].stop, float(labels[which])])
        images[index] = _developed(ink, random)
        boxes.append(np.array(rows, np.float64))
    return Canvases(images, tuple(boxes), classes)


def _place(
    digit: NDArray[np.float32], taken: NDArray[np.bool_], random: np.random.Generator
) -> tuple[int, int, NDArray[np.float32]] | None:
    """Row and column of its corner, and the digit enlarged and cut to its ink; None where no free place was drawn."""
    from PIL import Image

    side, height = len(taken), int(random.integers(SIZES[0], SIZES[1] + 1))
    picture = Image.fromarray(digit).resize((height, height), Image.Resampling.BICUBIC)
    stamp = np.clip(np.asarray(picture), 0, 1)
    rows, columns = (np.flatnonzero((stamp >= INK).any(axis)) for axis in (1, 0))
    stamp = stamp[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for _ in range(TRIES):
        row, column = (int(random.integers(0, side - length + 1)) for length in stamp.shape)
        if not taken[row : row + stamp.shape[0], column : column + stamp.shape[1]].any():
            return row, column, stamp
    return None


def _developed(ink: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.uint8]:
    """Levels 0..255: light ink on a dark ground that rises to one side, with noise."""
    side = len(ink)
    across, down = random.uniform(-30, 30, 2)
    ramp = np.linspace(-0.5, 0.5, side)
    ground = random.uniform(30, 90) + across * ramp[None, :] + down * ramp[:, None]
    level = ground + ink * random.uniform(90, 160) + random.normal(0, 12, (side, side))
    levels: NDArray[np.uint8] = np.clip(np.rint(level), 0, 255).astype(np.uint8)
    return levels
