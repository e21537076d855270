"""Small sets for the tests of the data sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import config
from pipeline.data import Dataset

Arrays = dict[str, NDArray[Any]]


def arrays(dtype: type[np.generic] = np.uint8, channels: int | None = 3) -> Arrays:
    """8 + 4 images of 6x5 pixels, 2 classes."""
    rng = np.random.RandomState(1)
    shape = (6, 5) if channels is None else (6, 5, channels)
    return {
        "x_train": rng.randint(0, 255, (8, *shape)).astype(dtype),
        "y_train": np.arange(8) % 2,
        "x_test": rng.randint(0, 255, (4, *shape)).astype(dtype),
        "y_test": np.arange(4) % 2,
    }


def saved(folder: Path, content: Arrays) -> config.Data:
    np.savez(folder / "set.npz", allow_pickle=True, **content)
    return config.Data(source=f"npz:{folder / 'set.npz'}")


def whole(data: Dataset, which: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    split = data.train if which == "train" else data.test
    batches = list(split.batches(3))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
