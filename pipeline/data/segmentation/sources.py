"""The sources of images with masks, rows of `SOURCES` in `pipeline/data/sources.py`."""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.dataset import Dataset, Settings
from pipeline.data.digests import of_files, of_tree
from pipeline.data.sources import LOOKED, Digits, expanded
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.segmentation.pairs import Pairs


class SegFolder:
    """DIR/train/images, DIR/train/masks, DIR/val/images and DIR/val/masks: `pairs.py`."""

    def __init__(self, text: str, section: Settings) -> None:
        self.folder, self.section = expanded(text, "data.source"), section

    @cached_property
    def _parts(self) -> tuple[Pairs, Pairs]:
        from pipeline.data.segmentation.pairs import pairs_of

        if not self.folder.is_dir():
            problem = f"data.source names {self.folder}, which is no folder"
            raise UserError(problem, "a folder of images and masks", f"{LOOKED}; mend data.source")
        return pairs_of(self.folder)

    def fingerprint(self) -> str:
        """Of names below the folder and content; links are followed."""
        from pipeline.data.segmentation.pairs import paths_of

        cache = None
        with contextlib.suppress(UserError):  # without a home folder every file is read again
            cache = expanded(self.section.root, "data.root") / "digests.sqlite"
        return of_tree(self.folder, paths_of(self._parts, self.folder), "segfolder", cache)

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.segmentation.pairs import names_of
        from pipeline.data.segmentation.split import dataset

        names = names_of(self.folder, *self._parts, self.section.workers)
        return dataset(*self._parts, names, self.section, fingerprint)


class DigitMasks:
    """The digits on canvases, with a mask: class 0 is the ground, class k + 1 the ink of digit k:
    `pipeline/data/canvases.py`."""

    def __init__(self, text: str, section: Settings) -> None:
        self.section = section

    def fingerprint(self) -> str:
        from pipeline.data import canvases

        return of_files([Path(canvases.__file__)], f"masks of {Digits('', self.section).fingerprint()}")

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.arrays import dataset
        from pipeline.data.canvases import train_and_test
        from pipeline.data.raw import Raw

        train, test = train_and_test()
        names = ("ground", *(str(digit) for digit in range(10)))
        raw = Raw("canvases:masks", train.images, train.classes, test.images, test.classes, names)
        return dataset(raw, self.section, fingerprint)
