"""The files of a folder of images and masks, matched by name.

DIR/train/images/*.jpg with DIR/train/masks/*.png, or DIR/images/train with DIR/masks/train; val (or valid, validation,
test) likewise. A mask is called as its image, `_mask` may follow; DIR/classes.txt names the classes, one a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import IGNORED
from pipeline.data.folder import FORMATS
from pipeline.data.tree import SUFFIXES, files_below
from runtime.errors import UserError
from runtime.images import read_mask, size_of

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
IMAGES, MASKS = ("images", "img"), ("masks", "annotations", "labels")
AFTER = ("", "_mask")
LAYOUT = "DIR/train/images, DIR/train/masks, DIR/val/images and DIR/val/masks"
CLASSES = "classes.txt"
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Images of one part and their masks, in the order of the images' names; `others`: files that are none by their
    name, and masks without an image."""

    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    others: int

    def note(self) -> str:
        """How many there are, and how many files were left out."""
        left_out = f"; {self.others} files left out, which are no image by name or a mask of none"
        return f"{self.folder}: {len(self.images)} images with masks" + (left_out if self.others else "")


def pairs_of(folder: Path) -> tuple[Pairs, Pairs]:
    """Of train and of val. UserError: a folder is missing or empty, or an image has no mask."""
    train, val = (_pairs(*_folders(folder, part)) for part in PARTS)
    return train, val


def _folders(folder: Path, part: str) -> tuple[Path, Path]:
    """Of images and of masks."""
    of_part = [(folder / name / images, folder / name) for name in PARTS[part] for images in IMAGES]
    of_kind = [(folder / images / name, folder) for name in PARTS[part] for images in IMAGES]
    for images, above in of_part + of_kind:
        if not images.is_dir():
            continue
        places = [above / kind if above != folder else above / kind / images.name for kind in MASKS]
        masks = next((place for place in places if place.is_dir()), None)
        if masks is None:
            raise UserError(
                f"there are images in {images}, and no masks", f"a folder {places[0]}", "put a PNG for each image there"
            )
        return images, masks
    raise UserError(f"{folder} has no images to {'train with' if part == 'train' else 'test on'}", LAYOUT, "make them")


def _pairs(folder: Path, below: Path) -> Pairs:
    files, masks = files_below(folder), files_below(below)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(f"{folder} holds no image", f"files {', '.join(sorted(SUFFIXES))}", "add some")
    by_name = {path.relative_to(below).with_suffix("").as_posix(): path for path in masks if path.suffix == ".png"}
    matched = []
    for image in images:
        name = image.relative_to(folder).with_suffix("").as_posix()
        mask = next((by_name[name + after] for after in AFTER if name + after in by_name), None)
        if mask is None:
            raise UserError(f"{image} has no mask", f"{below / name}.png", "add it, or take the image away")
        matched.append(mask)
    others = len(files) - len(images) + len(masks) - len(set(matched))
    return Pairs(folder, tuple(images), tuple(matched), others)


def names_of(folder: Path, train: Pairs, val: Pairs, workers: int) -> tuple[str, ...]:
    """The classes: those of classes.txt, or 0 to the largest label of the training masks. Every mask is read.
    UserError: one of another size than its image, none of labels, a label out of range, or fewer than two classes."""
    listed, counts = _listed(folder / CLASSES), _levels(train, workers)
    there = np.flatnonzero(counts[:, :IGNORED].any(0))
    names = listed or tuple(str(k) for k in range(int(there.max(initial=-1)) + 1))
    if len(names) < 2:
        labels = f"the label {there[0]} alone" if len(there) == 1 else "no label"
        raise UserError(f"the masks of {train.folder} have {labels}", "two classes or more", "mend the masks")
    what = f"named in {folder / CLASSES}" if listed else "in the training masks"
    for part, levels in ((train, counts), (val, _levels(val, workers))):
        beyond = levels[:, len(names) : IGNORED].any(1)
        if beyond.any():
            at = int(np.argmax(beyond))
            label = len(names) + int(np.argmax(levels[at, len(names) :] > 0))
            raise UserError(
                f"{part.masks[at]} has the label {label}",
                f"0 to {len(names) - 1} ({len(names)} classes {what}), or {IGNORED} for no label",
                "mend the mask, or name the classes",
            )
    return names


def _listed(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})", "a class on each line", "mend it") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) > IGNORED:
        raise UserError(f"{path} names {len(names)} classes", f"{IGNORED} at most", "leave some out")
    return names


def _levels(part: Pairs, workers: int) -> Counts:
    """(N, 256): how many pixels of each mask have each label."""

    def one(image: Path, mask: Path) -> Counts:
        labels, size = read_mask(mask), size_of(image, FORMATS)
        if labels.shape != size:
            (height, width), (rows, columns) = size, labels.shape
            raise UserError(
                f"{mask} is {rows}x{columns} pixels, and its image {image.name} {height}x{width}",
                "a label for each pixel of the image",
                "write the mask at the size of its image",
            )
        return np.bincount(labels.reshape(-1), minlength=256)

    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(one, part.images, part.masks)))


def paths_of(parts: Sequence[Pairs], folder: Path) -> list[Path]:
    """Every file that counts."""
    listed = [folder / CLASSES] if (folder / CLASSES).is_file() else []
    return listed + [path for part in parts for path in (*part.images, *part.masks)]
