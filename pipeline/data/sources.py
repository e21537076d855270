"""The data sources: one class and one row each; `module:function` names a user's own arrays.

Nothing here decodes an image or imports torch before it is asked to load.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from pipeline.data.dataset import Dataset, Settings, Source
from pipeline.data.digests import of_files, of_tree
from pipeline.data.raw import KEYS, Raw, as_array, demand_keys, demand_whole, fingerprint_of, raw_of
from pipeline.data.tree import Listing, listings
from pipeline.lookup import MODULE_FUNCTION, function_named, nearest
from runtime.errors import UserError

SOURCES = {
    "digits": "pipeline.data.sources:Digits",
    "npz:FILE": "pipeline.data.sources:Npz",
    "torchvision:NAME": "pipeline.data.sources:Torchvision",
    "imagefolder:DIR": "pipeline.data.sources:ImageFolder",
    "csv:FILE": "pipeline.data.table:Csv",
    "segfolder:DIR": "pipeline.data.segmentation.sources:SegFolder",
    "canvases:masks": "pipeline.data.segmentation.sources:DigitMasks",
    "coco:DIR": "pipeline.data.detection.sources:Coco",
    "yolo:DIR": "pipeline.data.detection.sources:Yolo",
    "canvases:boxes": "pipeline.data.detection.sources:DigitBoxes",
}
"""How `data.source` is written -> the class."""
PICTURES = ("imagefolder:DIR", "csv:FILE", "segfolder:DIR", "coco:DIR", "yolo:DIR")
BOXES = ("coco:DIR", "yolo:DIR", "canvases:boxes")
OWN = "module:function"
DIGITS_TRAIN = 1400
DAMAGED = (
    OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error,
    pickle.UnpicklingError,
)  # fmt: skip
"""What numpy raises on files that are no npz files, or damaged ones."""
TORCHVISION_FILES = {
    "CIFAR10": "cifar-10-batches-py/*_batch*",
    "CIFAR100": "cifar-100-python/t*",
    "MNIST": "MNIST/raw/*-ubyte",
    "FashionMNIST": "FashionMNIST/raw/*-ubyte",
    "KMNIST": "KMNIST/raw/*-ubyte",
    "SVHN": "t*_32x32.mat",
    "USPS": "usps*.bz2",
}
"""Sets of torchvision.datasets that fit in memory as one array -> the files below the root that hold their images."""


def row_of(source: str) -> str | None:
    """The key of `SOURCES` that a `data.source` is written like; None where it is none."""
    kind, _, text = source.partition(":")
    if source in SOURCES:
        return source
    forms = (form.partition(":") for form in SOURCES)
    return next(("".join(form) for form in forms if form[0] == kind and form[2].isupper() and text), None)


def reads_pictures(source: str) -> bool:
    """Whether a `data.source` decodes files of images, which may have any size."""
    return row_of(source) in PICTURES


def gives_boxes(source: str) -> bool:
    """Whether the targets of a `data.source` are boxes."""
    return row_of(source) in BOXES


def source_of(section: Settings) -> Source:
    """The source that `section.source` names. UserError where there is none of that name."""
    row, text = row_of(section.source), section.source.partition(":")[2]
    if row is not None:
        source: Source = function_named(SOURCES[row], "data.source")(text, section)
        return source
    if not MODULE_FUNCTION.fullmatch(section.source):
        raise UserError(
            f'data.source is "{section.source}"',
            f"one of {', '.join([*SOURCES, OWN])}",
            f"perhaps {nearest(section.source.partition(':')[0], SOURCES, 1)}",
        )
    return Function(section.source, section)


def expanded(text: str, key: str) -> Path:
    """`text` with ~ as the home folder. UserError where there is none; `key` is the config key to blame."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key} is {text}, and there is no home folder", "a path without ~", f"set {key}") from error


LOOKED = "a relative path is looked for beside the config, then in the working folder"


class Digits:
    """scikit-learn's 1,797 scans, 8x8, values 0..16 as float32, in the order of RandomState(0).permutation(1797): the
    first 1,400 train, the other 397 test."""

    def __init__(self, text: str, section: Settings) -> None:
        self.section = section

    def fingerprint(self) -> str:
        spec = importlib.util.find_spec("sklearn")
        assert spec is not None and spec.origin is not None, "scikit-learn is a dependency"
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        return of_files([path], "RandomState(0).permutation(1797), 1400/397")

    def load(self, fingerprint: str) -> Dataset:
        import numpy as np
        from sklearn.datasets import load_digits

        from pipeline.data.arrays import dataset

        bunch = load_digits()
        order = np.random.RandomState(0).permutation(len(bunch.target))
        x, y, n = bunch.images[order].astype(np.float32), bunch.target[order], DIGITS_TRAIN
        raw = Raw("digits", x[:n], y[:n], x[n:], y[n:], tuple(str(k) for k in range(10)))
        return dataset(raw, self.section, fingerprint)


class Npz:
    """A file with x_train, y_train, x_test, y_test and optionally names (str), never unpickled."""

    def __init__(self, text: str, section: Settings) -> None:
        self.path, self.section = expanded(text, "data.source"), section

    def fingerprint(self) -> str:
        if not self.path.is_file():
            problem = f"data.source names {self.path}, which is no file"
            raise UserError(problem, "an npz file", f"{LOOKED}; mend data.source")
        return of_files([self.path], "npz")

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.arrays import dataset

        return dataset(self._raw(), self.section, fingerprint)

    def _raw(self) -> Raw:
        import numpy as np

        content: dict[str, Any] = {}
        key = ""
        try:
            with self.path.open("rb") as stream:
                file = np.load(stream, allow_pickle=False)
                if isinstance(file, np.ndarray):
                    raise UserError(
                        f"{self.path} holds one array", f"an npz file with {', '.join(KEYS)}", "write it by np.savez"
                    )
                demand_keys(file.files, str(self.path))
                for key in (*KEYS, *(k for k in file.files if k == "names")):
                    demand_whole(file.zip, key)
                    content[key] = file[key]
        except DAMAGED as error:
            item = f"{self.path}: {key}" if key else str(self.path)
            if "Object arrays" in str(error):
                problem, remedy = f"{item} is an object array", "convert it: np.asarray(x, dtype)"
                raise UserError(problem, "numbers of one shape", remedy) from error
            reason = str(error) or "no memory for it"
            raise UserError(
                f"{item} cannot be read ({reason})", "a whole npz file", "write it again by np.savez"
            ) from error
        return raw_of(str(self.path), content)


class Torchvision:
    """A set of torchvision.datasets, downloaded into `data.root` where it is not there."""

    def __init__(self, text: str, section: Settings) -> None:
        self.name, self.section = text, section

    def _files(self) -> list[Path]:
        if self.name not in TORCHVISION_FILES:
            raise UserError(
                f'data.source names the torchvision set "{self.name}"',
                f"one of {', '.join(TORCHVISION_FILES)}",
                f"perhaps torchvision:{nearest(self.name, TORCHVISION_FILES, 1)}; for others write image folders or an "
                "npz",
            )
        return sorted(expanded(self.section.root, "data.root").glob(TORCHVISION_FILES[self.name]))

    def fingerprint(self) -> str:
        if not self._files():
            self._raw()
        return of_files(self._files(), f"torchvision:{self.name}")

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.arrays import dataset

        return dataset(self._raw(), self.section, fingerprint)

    def _raw(self) -> Raw:
        import numpy as np
        from torchvision import datasets

        there, root, by_split = bool(self._files()), expanded(self.section.root, "data.root"), self.name == "SVHN"
        content: dict[str, Any] = {}
        for train, key in ((True, "train"), (False, "test")):
            which: dict[str, Any] = {"split": key} if by_split else {"train": train}
            try:
                root.mkdir(parents=True, exist_ok=True)
                with contextlib.redirect_stdout(sys.stderr):
                    part = getattr(datasets, self.name)(str(root), download=True, **which)
            except Exception as error:
                raise UserError(
                    f"torchvision:{self.name} could not be {'read from' if there else 'downloaded into'} {root}"
                    f" ({type(error).__name__}: {error})",
                    "a machine that reaches the set's server, or its files in place",
                    f"copy the files into {root}, or set data.root",
                ) from error
            x = np.asarray(part.data)
            content[f"x_{key}"] = x.transpose(0, 2, 3, 1) if by_split else x
            content[f"y_{key}"] = np.asarray(part.labels if by_split else part.targets).astype(np.int64)
            if train and (classes := getattr(part, "classes", None)):
                content["names"] = classes
        return raw_of(f"torchvision:{self.name}", content)


class ImageFolder:
    """DIR/train/CLASS/ and DIR/val/CLASS/, decoded as batches need them."""

    def __init__(self, text: str, section: Settings) -> None:
        self.folder, self.section = expanded(text, "data.source"), section

    def fingerprint(self) -> str:
        """Of names below the folder and content; links are followed."""
        if not self.folder.is_dir():
            problem = f"data.source names {self.folder}, which is no folder"
            raise UserError(problem, "a folder of images", f"{LOOKED}; mend data.source")
        paths = [path for listing in self._listings() for path in listing.paths]
        cache = None
        with contextlib.suppress(UserError):  # without a home folder every file is read again
            cache = expanded(self.section.root, "data.root") / "digests.sqlite"
        return of_tree(self.folder, paths, "imagefolder", cache)

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.folder import dataset

        train, test, *more = self._listings()
        data = dataset(train, test, self.section, fingerprint, *more)
        if more or not (self.folder / "test").is_dir():
            return data
        unread = f"{self.folder / 'test'} is not read, and val/ is the test split; data.validation: val changes that"
        return dataclasses.replace(data, notes=(*data.notes, unread))

    def _listings(self) -> list[Listing]:
        """Of train/ and val/, which is the test split; where choices are made on val/, of train/, test/ and val/."""
        return listings(self.folder, ("test", "val") if self.section.validation == "val" else ("val",))


class Function:
    """Calls `module:function` without arguments; it returns a dict of the npz keys, or the arrays as a tuple in that
    order. torch tensors are taken as arrays of the same layout."""

    def __init__(self, text: str, section: Settings) -> None:
        self.name, self.section = text, section

    def fingerprint(self) -> str:
        """Of the arrays, as they are."""
        return fingerprint_of(self._raw())

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.arrays import dataset

        raw = self._raw()  # a second call may give other arrays: what counts is what was read
        return dataset(raw, self.section, fingerprint_of(raw))

    def _raw(self) -> Raw:
        function = function_named(self.name, "data.source")
        try:
            returned = function()
        except Exception as error:
            problem = f"{self.name} raised {type(error).__name__}: {error}"
            raise UserError(problem, "a function that returns arrays", "mend the function") from error
        if isinstance(returned, tuple | list) and len(returned) in (len(KEYS), len(KEYS) + 1):
            returned = dict(zip((*KEYS, "names"), returned, strict=False))
        if not isinstance(returned, dict):
            raise UserError(
                f"{self.name} returned {type(returned).__name__}",
                f"a dict or a tuple of {', '.join(KEYS)}[, names]",
                "mend the function",
            )
        demand_keys(list(returned), self.name)
        return raw_of(self.name, {key: as_array(value) if key in KEYS else value for key, value in returned.items()})
