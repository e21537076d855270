"""Real data sets for benchmarks, from a folder that has a `load.py` with a function for each set.

`cifar10("train" | "test")`, `fashion_mnist(...)` return x uint8 (N, H, W[, 3]), y uint8 (N,) and the classes' names;
`tiny_imagenet100` has its training images in two parts.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.data import Dataset, arrays
from pipeline.data.raw import Raw
from runtime.errors import UserError

PARTS = {"tiny_imagenet100": (("train_0", "train_1"), "val")}
"""Of a set's training images, and of its test images."""
DEFAULT = Path(os.environ.get("DEMPORT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def loader(folder: Path) -> Any:
    """The module `load.py` of the folder of data sets. Raises UserError."""
    path = folder / "load.py"
    spec = importlib.util.spec_from_file_location("load", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"there is no {path}", "a folder with the data sets", "set DEMPORT_DATA or --data")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dataset(name: str, folder: Path, side: int | None = None, n: int | None = None) -> Dataset:
    """The set `name`; the first `n` training images, averaged down to `side` pixels where given. Raises UserError."""
    module = loader(folder)
    train, test = PARTS.get(name, (("train",), "test"))
    parts = [getattr(module, name)(part) for part in train]
    x_train, y_train = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    x_test, y_test, names = getattr(module, name)(test)
    x_train, x_test = (smaller(np.asarray(x), side) for x in (x_train[:n], x_test))
    labels = (np.asarray(y).astype(np.int64) for y in (y_train[:n], y_test))
    y_first, y_second = labels
    raw = Raw(name, x_train, y_first, x_test, y_second, tuple(map(str, names)))
    return arrays.dataset(raw, None, name)


def smaller(x: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], side: int | None) -> np.ndarray[
    tuple[int, ...], np.dtype[np.uint8]
]:  # fmt: skip
    """x (N, H, W[, C]) with H and W averaged down to `side`."""
    if side is None:
        return x
    images = torch.from_numpy(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2)
    parts = [F.interpolate(part.float(), size=(side, side), mode="area") for part in torch.split(images, 4096)]
    averaged = torch.cat([part.round().to(torch.uint8) for part in parts]).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(averaged if x.ndim == 4 else averaged[..., 0])
