"""Batches of images with boxes. The targets of a batch are one tensor: its rows without a box are filled up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.data.ahead import read_ahead
from pipeline.data.arrays import moments, normalisation
from pipeline.data.augment import batch_indices, batch_stream, rows_of
from pipeline.data.dataset import WHOLE, Augment, Dataset, Part, Settings
from pipeline.data.detection.annotated import COLUMNS, Annotated, Boxes
from pipeline.data.detection.geometry import Move, demand_moves, fitted, moved, moves
from pipeline.data.folder import FORMATS, MOMENTS_FROM, SCALE
from runtime.errors import UserError
from runtime.images import Fit, read_picture

NO_BOX = -1.0
"""In the column of the class: no box in this row."""


class Pictures(Protocol):
    """Images of one size, with their boxes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """uint8 (C, H, W), and float32 (M, 6) in its pixels."""


@dataclass(frozen=True)
class Held:
    """In memory: `images` uint8 (N, C, H, W), and the boxes of each (M, 6) in pixels."""

    images: Tensor
    boxes: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.boxes[index]


@dataclass(frozen=True)
class Files:
    """Decoded when they are read, and fitted to `size` (H, W). Without `fit` every image has that size already."""

    paths: tuple[Path, ...]
    boxes: tuple[Boxes, ...]
    stated: tuple[tuple[int, int], ...] | None
    """(height, width) that the annotations say."""
    size: tuple[int, int]
    fit: Fit | None
    background: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.paths[index]
        image = read_picture(path, FORMATS, self.background)
        height, width = image.height, image.width
        if self.stated is not None and self.stated[index] != (height, width):
            stated = "x".join(map(str, self.stated[index]))
            raise UserError(
                f"{path} is {height}x{width} pixels, and its annotations are for {stated}",
                "boxes of the image as it is, upright",
                "mend height and width, and the boxes",
            )
        if self.fit is not None:
            image = self.fit(image)
        elif (height, width) != self.size:
            raise UserError(
                f"{path} is {height}x{width} pixels",
                f"{self.size[0]}x{self.size[1]} like the first image",
                "set data.image_size",
            )
        pixels: Tensor = v2.functional.pil_to_tensor(image)
        return pixels, fitted(self.boxes[index], height, width, self.fit)


@dataclass(frozen=True)
class Chosen:
    """Some of the images, by their positions."""

    pictures: Pictures
    index: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pictures.read(self.index[index])


@dataclass(frozen=True)
class BoxSplit:
    """Batches x float32 (B, C, H, W), normalised, and boxes float32 (B, M, 6): x1, y1, x2, y2 as shares of the width
    and height of x, class, crowd. M is the most boxes of an image of the split; rows without a box have class -1."""

    name: str
    pictures: Pictures
    most: int
    scale: float
    mean: Tensor
    """(C, 1, 1), as std."""
    std: Tensor
    fill: tuple[int, ...]
    """What augmentation lets in from outside, a level for each channel."""
    device: torch.device
    workers: int

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labels(self) -> Tensor:
        """Of no use here."""
        return torch.empty(0, dtype=torch.int64)

    def to(self, device: torch.device) -> BoxSplit:
        return dataclasses.replace(self, mean=self.mean.to(device), std=self.std.to(device), device=device)

    def subset(self, index: Tensor, name: str) -> BoxSplit:
        """Its images `index` int64 (M,), as a split of this name."""
        return dataclasses.replace(self, name=name, pictures=Chosen(self.pictures, tuple(index.tolist())))

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        augment: Augment = "none",
        first: int = 0,
        part: Part = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert seed is not None or augment == "none", "augmentation needs a seed"
        demand_moves(augment, "augment")
        size = (self._shape[1], self._shape[2])

        def calls() -> Iterator[tuple[int, list[Callable[[], tuple[Tensor, Tensor]]]]]:
            for batch, whole in batch_indices(len(self), batch_size, seed, epoch, first):
                drawn = moves(augment, size, batch_stream(seed or 0, epoch, batch), len(whole), part)
                own = whole[rows_of(part)].tolist()
                yield batch, [partial(self._one, index, move) for index, move in zip(own, drawn, strict=True)]

        for _, pairs in read_ahead(self.workers, calls()):
            yield self._batch(pairs)

    @property
    def _shape(self) -> torch.Size:
        return self.pictures.read(0)[0].shape

    def _one(self, index: int, move: Move | None) -> tuple[Tensor, Tensor]:
        image, boxes = moved(*self.pictures.read(index), move, self.fill)
        height, width = image.shape[1:]
        rows = torch.zeros(self.most, COLUMNS)
        rows[:, 4] = NO_BOX
        rows[: len(boxes)] = boxes
        rows[:, :4] /= torch.tensor([width, height, width, height])
        return image, rows

    def _batch(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Normalised and on the device."""
        if not pairs:
            return self.mean.new_empty((0, *self._shape)), self.mean.new_empty((0, self.most, COLUMNS))
        x, boxes = (torch.stack(each) for each in zip(*pairs, strict=True))
        if self.device.type == "cuda":
            x, boxes = x.pin_memory(), boxes.pin_memory()
        x, boxes = x.to(self.device, non_blocking=True), boxes.to(self.device, non_blocking=True)
        return x.to(torch.float32).div_(self.scale).sub_(self.mean).div_(self.std), boxes


def dataset(train: Annotated, test: Annotated, section: Settings, fingerprint: str) -> Dataset:
    """Of files. Unless they are set, mean and standard deviation come from at most 1,024 training images, evenly
    spaced, and as many test images are looked at. Raises UserError."""
    first = read_picture(train.paths[0], FORMATS, section.background)
    side = section.image_size
    size = (first.height, first.width) if side is None else (side, side)
    fit = None if side is None else Fit(section.fit, size, section.resize or side, section.background)
    parts = [Files(one.paths, one.boxes, one.sizes, size, fit, section.background) for one in (train, test)]
    looked = [[part.read(index)[0][None] for index in _spaced(len(part))] for part in parts]
    fixed = normalisation(section, 3, str(train.origin))
    mean, std = fixed or moments(looked[0], SCALE, str(train.origin))
    most = [max(map(len, one.boxes)) for one in (train, test)]
    splits = _splits(list(parts), most, mean, std, section.background, section.workers)
    notes = (train.note(), test.note())
    return Dataset(*splits, train.names, (3, *size), mean, std, SCALE, fingerprint, fit, notes, targets="boxes")


def held(train: Held, test: Held, names: tuple[str, ...], section: Settings, fingerprint: str, origin: str) -> Dataset:
    """Of images in memory, all of one size."""
    channels = int(train.images.shape[1])
    shape = channels, int(train.images.shape[2]), int(train.images.shape[3])
    mean, std = normalisation(section, channels, origin) or moments([train.images], SCALE, origin)
    most = [max(map(len, one.boxes)) for one in (train, test)]
    fill = tuple(round(SCALE * level) for level in mean)
    splits = _splits([train, test], most, mean, std, fill, 1)
    return Dataset(*splits, names, shape, mean, std, SCALE, fingerprint, targets="boxes")


def _spaced(count: int) -> range:
    return range(0, count, -(-count // MOMENTS_FROM))


def _splits(
    pictures: list[Pictures],
    most: list[int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fill: tuple[int, ...],
    workers: int,
) -> tuple[BoxSplit, BoxSplit]:
    columns = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    cpu = torch.device("cpu")
    train, test = (
        BoxSplit(name, part, max(count, 1), SCALE, *columns, fill, cpu, workers)
        for name, part, count in zip(("train", "test"), pictures, most, strict=True)
    )
    return train, test


def boxes_of(rows: np.ndarray, crowd: float = 0.0) -> Tensor:
    """Rows (M, 5) of corners in pixels and class as float32 (M, 6)."""
    return torch.from_numpy(np.concatenate([rows, np.full((len(rows), 1), crowd)], 1).astype(np.float32))
