"""The sources that come as whole arrays. What they hold is checked in `arrays.py`."""

from __future__ import annotations

import contextlib
import pickle
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import lookup
from pipeline.data.paths import torchvision_files
from runtime.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS_TRAIN = 1400


@dataclass(frozen=True)
class Raw:
    """Unchecked arrays; `origin` is what an error blames, e.g. the file."""

    origin: str
    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    names: tuple[str, ...] | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {key: getattr(self, key) for key in KEYS}


def digits() -> Raw:
    """scikit-learn's 1,797 scans, 8x8, values 0..16 as float32, in the order of RandomState(0).permutation(1797): the
    first 1,400 train, the other 397 test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.target))
    x, y = bunch.images[order].astype(np.float32), bunch.target[order]
    n = DIGITS_TRAIN
    return Raw("digits", x[:n], y[:n], x[n:], y[n:], tuple(str(k) for k in range(10)))


def npz(path: Path) -> Raw:
    """x_train, y_train, x_test, y_test and optionally names (str), never unpickled."""
    found = {}
    key = ""
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise UserError(
                    f"{path} holds one array", f"an npz file with {', '.join(KEYS)}", "write it by np.savez"
                )
            _demand_keys(file.files, str(path))
            for key in (*KEYS, *(k for k in file.files if k == "names")):
                found[key] = file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError) as error:
        item = f"{path}: {key}" if key else str(path)
        if "Object arrays" in str(error):
            raise UserError(
                f"{item} is an object array", "numbers of one shape", "convert it: np.asarray(x, dtype)"
            ) from error
        raise UserError(f"{item} cannot be read ({error})", "a whole npz file", "write it again by np.savez") from error
    return _raw(str(path), found)


def torchvision_set(name: str, root: Path) -> Raw:
    """A set of torchvision.datasets, downloaded into `root` where it is not there."""
    from torchvision import datasets

    there = bool(torchvision_files(name, root))
    by_split = name == "SVHN"
    parts = []
    for train in (True, False):
        which: dict[str, Any] = {"split": "train" if train else "test"} if by_split else {"train": train}
        try:
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):
                parts.append(getattr(datasets, name)(str(root), download=True, **which))
        except Exception as error:
            raise UserError(
                f"torchvision:{name} could not be {'read from' if there else 'downloaded into'} {root}"
                f" ({type(error).__name__}: {error})",
                "a machine that reaches the set's server, or its files in place",
                f"copy the files into {root}, or set data.root",
            ) from error
    found: dict[str, Any] = {}
    for part, which_part in zip(parts, ("train", "test"), strict=True):
        x = np.asarray(part.data)
        found[f"x_{which_part}"] = x.transpose(0, 2, 3, 1) if by_split else x
        found[f"y_{which_part}"] = np.asarray(part.labels if by_split else part.targets).astype(np.int64)
    if classes := getattr(parts[0], "classes", None):
        found["names"] = classes
    return _raw(f"torchvision:{name}", found)


def from_function(spec: str) -> Raw:
    """Calls `module:function` without arguments; it returns a dict of the npz keys, or the arrays as a tuple in that
    order. torch tensors are taken as arrays of the same layout."""
    function = lookup.function_named(spec, "data.source")
    try:
        returned = function()
    except Exception as error:
        raise UserError(
            f"{spec} raised {type(error).__name__}: {error}", "a function that returns arrays", "mend the function"
        ) from error
    if isinstance(returned, tuple | list) and len(returned) in (len(KEYS), len(KEYS) + 1):
        returned = dict(zip((*KEYS, "names"), returned, strict=False))
    if not isinstance(returned, dict):
        raise UserError(
            f"{spec} returned {type(returned).__name__}",
            f"a dict or a tuple of {', '.join(KEYS)}[, names]",
            "mend the function",
        )
    _demand_keys(list(returned), spec)
    return _raw(spec, {key: _array(value) if key in KEYS else value for key, value in returned.items()})


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(value, dtype=object)


def _demand_keys(present: list[str], origin: str) -> None:
    for key in KEYS:
        if key not in present:
            raise UserError(
                f"{origin} has no {key} (it has {', '.join(present) or 'nothing'})",
                f"{', '.join(KEYS)} and optionally names",
                "add it",
            )


def _raw(origin: str, found: dict[str, Any]) -> Raw:
    names = found.get("names")
    texts = None if names is None else tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    x_train, y_train, x_test, y_test = (found[key] for key in KEYS)
    return Raw(origin, x_train, y_train, x_test, y_test, texts)
