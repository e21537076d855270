"""The files of an image folder: DIR/train/CLASS/... and DIR/val/CLASS/..., as torchvision's ImageFolder reads them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
SHOWN = 3


@dataclass(frozen=True)
class Listing:
    """The images of one part in the order of class and name, and the label of each."""

    folder: Path
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    others: tuple[Path, ...]
    """Files that are no images by their name."""

    def note(self) -> str:
        """How many images there are, and what was left out."""
        images = f"{self.folder}: {len(self.paths)} images in {len(self.names)} classes"
        if not self.others:
            return images
        kinds = Counter(path.suffix.lower() or "no suffix" for path in self.others).most_common(SHOWN)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds)
        return f"{images}; {len(self.others)} files left out, which are no images by their name ({listed})"


def listings(folder: Path, parts: tuple[str, ...] = ("val",)) -> list[Listing]:
    """Of train and of `parts`. UserError: a folder or class is missing, empty, or has a name that is no UTF-8."""
    names = tuple(_folders(folder / "train"))
    if len(names) < 2:
        raise UserError(
            f"{folder / 'train'} holds {len(names)} class folders", "at least two", "sort the images into train/CLASS/"
        )
    return [_listing(folder / part, names) for part in ("train", *parts)]


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        usual = "train/CLASS/ and val/CLASS/ with images"
        expected = "test/CLASS/ with images" if folder.name == "test" else usual
        raise UserError(f"there is no folder {folder}", expected, "make it")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in names:
        if not name.isprintable():
            raise UserError(f"class folder {name!a} of {folder}", "a name of printable UTF-8 text", "rename it")
    return names


def _listing(part: Path, names: tuple[str, ...]) -> Listing:
    paths: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for name in _folders(part):
        if name not in names:
            raise UserError(f"{part / name} is no class of train/", f"one of {', '.join(names[:10])}", "rename it")
        files = list(_files(part / name, frozenset()))
        images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
        if not images:
            raise UserError(f"{part / name} holds no image", f"files {', '.join(sorted(SUFFIXES))}", "add some")
        others += [path for path in files if path.suffix.lower() not in SUFFIXES]
        paths += images
        labels += [names.index(name)] * len(images)
    if not paths:
        raise UserError(f"{part} holds no image", "CLASS/ folders with images", "add some")
    return Listing(part, names, tuple(paths), tuple(labels), tuple(others))


def files_below(folder: Path) -> list[Path]:
    """Every file below that is not hidden, in the order of names. UserError where a link leads back."""
    return sorted(_files(folder, frozenset()))


def _files(folder: Path, above: frozenset[tuple[int, int]]) -> list[Path]:
    """Every file below that is not hidden, links followed; `above` are the folders that lead here."""
    status = folder.stat()
    place = status.st_dev, status.st_ino
    if place in above:
        raise UserError(f"{folder} leads back to a folder above it", "folders without a circle", "remove the link")
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            files += _files(path, above | {place}) if entry.is_dir() else [path]
    return files
