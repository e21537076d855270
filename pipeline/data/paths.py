"""Where the files of a data source lie."""

from __future__ import annotations

from pathlib import Path

from pipeline.lookup import nearest
from runtime.errors import UserError

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


def file_path(text: str) -> Path:
    path = root_path(text)
    if not text or not path.is_file():
        raise UserError(f"data.source names {path}, which is no file", "an npz file", "mend data.source")
    return path


def folder_path(text: str) -> Path:
    path = root_path(text)
    if not text or not path.is_dir():
        raise UserError(f"data.source names {path}, which is no folder", "a folder of images", "mend data.source")
    return path


def root_path(text: str) -> Path:
    return Path(text).expanduser()


def torchvision_files(name: str, root: Path) -> list[Path]:
    """Empty where the set is not downloaded. Raises UserError for a set that is not in the table."""
    if name not in TORCHVISION_FILES:
        raise UserError(
            f'data.source names the torchvision set "{name}"',
            f"one of {', '.join(TORCHVISION_FILES)}",
            f"perhaps torchvision:{nearest(name, TORCHVISION_FILES, 1)}; for others write image folders or an npz",
        )
    return sorted(root.glob(TORCHVISION_FILES[name]))
