"""The sources of images with boxes, rows of `SOURCES` in `pipeline/data/sources.py`."""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.dataset import Dataset, Settings
from pipeline.data.digests import of_files, of_tree
from pipeline.data.sources import Digits, expanded
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.detection.annotated import Annotated


class Coco:
    """DIR/annotations/instances_train*.json and so on: `coco.py`."""

    def __init__(self, text: str, section: Settings) -> None:
        self.folder, self.section = expanded(text, "data.source"), section

    @cached_property
    def _parts(self) -> tuple[Annotated, Annotated]:
        from pipeline.data.detection.coco import read

        return read(self.folder)

    def fingerprint(self) -> str:
        """Of names and content of the annotations and of every image."""
        return _fingerprint(self.folder, self._parts, "coco", self.section)

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.detection.split import dataset

        return dataset(*self._parts, self.section, fingerprint)


class Yolo:
    """DIR/data.yaml, images/ and labels/: `yolo.py`."""

    def __init__(self, text: str, section: Settings) -> None:
        self.folder, self.section = expanded(text, "data.source"), section

    @cached_property
    def _parts(self) -> tuple[Annotated, Annotated]:
        from pipeline.data.detection.yolo import read

        return read(self.folder)

    def fingerprint(self) -> str:
        """Of names and content of the labels and of every image."""
        names = " ".join(self._parts[0].names)
        return _fingerprint(self.folder, self._parts, f"yolo {names}", self.section)

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.detection.split import dataset

        return dataset(*self._parts, self.section, fingerprint)


def _fingerprint(folder: Path, parts: tuple[Annotated, Annotated], rule: str, section: Settings) -> str:
    paths = [path for part in parts for path in (*part.files, *part.paths)]
    cache = None
    with contextlib.suppress(UserError):  # without a home folder every file is read again
        cache = expanded(section.root, "data.root") / "digests.sqlite"
    return of_tree(folder, paths, rule, cache)


class DigitBoxes:
    """The digits on canvases, with their boxes: `pipeline/data/canvases.py`."""

    def __init__(self, text: str, section: Settings) -> None:
        self.section = section

    def fingerprint(self) -> str:
        from pipeline.data import canvases

        digits = Digits("", self.section).fingerprint()
        return of_files([Path(canvases.__file__)], f"boxes of {digits}")

    def load(self, fingerprint: str) -> Dataset:
        import torch

        from pipeline.data.canvases import train_and_test
        from pipeline.data.detection.split import Held, boxes_of, held

        train, test = (
            Held(torch.from_numpy(part.images)[:, None], tuple(map(boxes_of, part.boxes))) for part in train_and_test()
        )
        names = tuple(str(digit) for digit in range(10))
        return held(train, test, names, self.section, fingerprint, "canvases:boxes")
