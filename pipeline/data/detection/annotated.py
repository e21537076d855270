"""Images and the boxes in them, as every reader of annotations gives them; nothing here decodes a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError

COLUMNS = 6
"""x1, y1, x2, y2, class, crowd."""
SLACK_PIXELS = 1.0
"""How far a box may reach over its image's border by rounding; it is cut there."""
SHOWN = 5

Boxes = NDArray[np.float64]
"""(M, 6): corners as shares 0..1 of the image's width and height, the class, and 1 where a box stands for a crowd."""


@dataclass(frozen=True)
class Annotated:
    """One part of a set: the images in order, and the boxes of each."""

    origin: Path
    """What an error blames: the file or folder of the annotations."""
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    boxes: tuple[Boxes, ...]
    files: tuple[Path, ...]
    """Files of annotations that were read."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """(height, width) that the annotations say, None where they say none."""
    without_area: int = 0
    """Boxes of no width or no height, which were left out."""

    def note(self) -> str:
        """How much there is, and what was left out."""
        empty = sum(not len(boxes) for boxes in self.boxes)
        total = sum(map(len, self.boxes))
        text = f"{self.origin}: {len(self.paths)} images, {total} boxes in {len(self.names)} classes"
        if empty:
            text += f"; {empty} images without a box"
        seen = {int(label) for boxes in self.boxes for label in boxes[:, 4]}
        if missing := [name for label, name in enumerate(self.names) if label not in seen]:
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            text += f"; no box of {', '.join(missing[:SHOWN])}{more}"
        if self.without_area:
            text += f"; {self.without_area} boxes of no area left out"
        return text


def demand_usable(part: Annotated) -> None:
    """UserError: there is no image, no box at all, or an image's file is not there."""
    if not part.paths:
        raise UserError(f"{part.origin} lists no image", "at least one image", "add some")
    if not any(map(len, part.boxes)):
        raise UserError(
            f"{part.origin} has no box in any of its {len(part.paths)} images", "at least one box", "annotate them"
        )
    listed: dict[Path, frozenset[str]] = {}
    for path in part.paths:
        folder = path.parent
        if folder not in listed:
            listed[folder] = frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()
        if path.name not in listed[folder]:
            raise UserError(
                f"{part.origin} lists the image {path.name}, and there is no file {path}",
                "a file for every image",
                "bring it back, or take it out of the annotations",
            )


def demand_same_classes(train: Annotated, test: Annotated) -> None:
    if train.names != test.names:
        pairs = zip((*train.names, *[""] * len(test.names)), (*test.names, *[""] * len(train.names)), strict=True)
        one, other = next(pair for pair in pairs if pair[0] != pair[1])
        raise UserError(
            f"class {one or 'none'} of {train.origin} is {other or 'none'} in {test.origin}",
            "the same classes in the same order",
            "mend one of them",
        )


def demand_names(names: Sequence[object], origin: Path) -> tuple[str, ...]:
    texts = tuple(str(name) for name in names)
    if not texts:
        raise UserError(f"{origin} names no class", "at least one class", "name it")
    if twice := next((name for k, name in enumerate(texts) if name in texts[:k]), None):
        raise UserError(f"{origin} names the class {twice} twice", "names that differ", "rename one")
    if bad := next((name for name in texts if not name.isprintable() or not name.strip()), None):
        raise UserError(f"{origin} names a class {bad!a}", "names of printable text", "rename it")
    return texts


def share_of(
    corners: Sequence[float], size: tuple[float, float], slack: tuple[float, float], where: str
) -> tuple[float, float, float, float] | None:
    """Corners x1, y1, x2, y2 in the unit of `size` (width, height), cut at the image's borders, as shares of it; None
    for a box of no area. UserError where they are no numbers, turned round, or further outside than `slack`."""
    x1, y1, x2, y2 = corners
    if not all(np.isfinite(corners)):
        raise UserError(f"{where} has a corner that is no number", "finite numbers", "mend it")
    if x2 < x1 or y2 < y1:
        raise UserError(f"{where} has a negative width or height", "a size of 0 or more", "mend it")
    outside = max(-x1, x2 - size[0]) > slack[0] or max(-y1, y2 - size[1]) > slack[1]
    if outside:
        drawn = ", ".join(f"{value:g}" for value in corners)
        raise UserError(
            f"{where} reaches outside its image: {drawn} (x1, y1, x2, y2) of {size[0]:g} x {size[1]:g}",
            "a box inside",
            "mend it, or the size of the image",
        )
    box = (max(x1, 0.0) / size[0], max(y1, 0.0) / size[1], min(x2 / size[0], 1.0), min(y2 / size[1], 1.0))
    return box if box[2] > box[0] and box[3] > box[1] else None
