"""A worst image for the report: the boxes of the truth, and what a network finds before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tasks.boxes.suppression import Suppression

if TYPE_CHECKING:
    from runtime.backends import Array

SIDE = 256
"""Of each of the pictures beside each other, pixels at least."""
SHOWN = 0.3
"""Score from which a detection is drawn."""
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#aaffc3")
SHOWS = "truth, before, after. The score is the F measure of its confident boxes at an overlap of 0.5"


def drawn(
    image: Array, target: Array, outputs: Sequence[Mapping[str, Array]], names: Sequence[str], keep: Suppression
) -> Array:
    """uint8 (H', W', 3): the image (H, W, 3) with the boxes of `target` (M, 6), and with the detections of both
    outputs, as `keep` leaves them, with their scores."""
    import torch

    truth = [(row[:4], names[int(row[4])]) for row in target if row[4] >= 0]
    rows: list[list[tuple[Any, str]]] = [truth]
    labels = [[int(row[4]) for row in target if row[4] >= 0]]
    for each in outputs:
        (detected,) = keep.of_batch({name: torch.tensor(value) for name, value in each.items()})
        shown = detected[detected[:, 4] >= SHOWN].numpy()
        rows.append([(row[:4], f"{names[int(row[5])]} {row[4]:.2f}") for row in shown])
        labels.append([int(row[5]) for row in shown])
    pictures = [_with_boxes(image, boxes, which) for boxes, which in zip(rows, labels, strict=True)]
    gap = np.full((pictures[0].shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)


def _with_boxes(image: Array, boxes: Sequence[tuple[Any, str]], labels: Sequence[int]) -> Array:
    from PIL import Image, ImageDraw, ImageFont

    scale = max(1, -(-SIDE // max(image.shape[:2])))
    picture = Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.NEAREST)
    canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for (corners, text), label in zip(boxes, labels, strict=True):
        colour = COLOURS[label % len(COLOURS)]
        x1, y1, x2, y2 = np.asarray(corners) * [picture.width, picture.height, picture.width, picture.height]
        canvas.rectangle([x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)], outline=colour, width=2)
        place = (x1 + 2, max(y1 - 14, 0))
        canvas.rectangle(canvas.textbbox(place, text, font=font), fill=colour)
        canvas.text(place, text, fill="black", font=font)
    return np.asarray(picture)
