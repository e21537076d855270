"""Folders of images, decoded when a batch needs them: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.data.ahead import read_ahead
from pipeline.data.arrays import moments, normalisation
from pipeline.data.augment import augmented, auto_augmented, batch_indices, batch_stream, random_crops, rows_of
from pipeline.data.dataset import WHOLE, Augment, AutoAugment, Dataset, Part, Sampling, Settings
from pipeline.data.tree import Listing
from runtime.errors import UserError
from runtime.images import Fit, read_picture

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""By content, whatever the name says (photos from the web are often GIFs called .jpg). Pillow's other readers are many,
and the one of EPS starts Ghostscript."""
MOMENTS_FROM = 1024
"""Batches that are decoded while one is used."""
SCALE = 255.0


@dataclass(frozen=True)
class Decoder:
    """A file as uint8 (3, H, W), RGB, of `size` (H, W). Without `fit` every image must have that size already."""

    size: tuple[int, int]
    fit: Fit | None
    background: tuple[int, int, int]

    def __call__(self, path: Path) -> Tensor:
        image = read_picture(path, FORMATS, self.background)
        if self.fit is not None:
            image = self.fit(image)
        elif (image.height, image.width) != self.size:
            raise UserError(
                f"{path} is {image.height}x{image.width} pixels",
                f"{self.size[0]}x{self.size[1]} like the first image",
                "set data.image_size",
            )
        pixels: Tensor = v2.functional.pil_to_tensor(image)
        return pixels

    def cropped(self, path: Path, side: int, down: float, right: float, mirrored: bool) -> Tensor:
        """As `Crops` says: the shorter side resized to `side`, then a window of `size`."""
        image = v2.functional.resize(read_picture(path, FORMATS, self.background), [side])
        top, left = int(down * (image.height - self.size[0] + 1)), int(right * (image.width - self.size[1] + 1))
        image = v2.functional.crop(image, top, left, *self.size)
        pixels: Tensor = v2.functional.pil_to_tensor(v2.functional.horizontal_flip(image) if mirrored else image)
        return pixels


@dataclass(frozen=True)
class FolderSplit:
    name: str
    paths: tuple[Path, ...]
    labels: Tensor
    decoder: Decoder
    mean: Tensor
    """(C, 1, 1), as std."""
    std: Tensor
    device: torch.device
    workers: int
    """Threads that decode; Pillow lets go of Python's lock while it does."""
    sampling: Sampling = "shuffled"
    auto_augment: AutoAugment = "none"
    """Both of batches with a seed, as a training has them; see `varied`."""

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, index: Tensor, name: str) -> FolderSplit:
        paths = tuple(self.paths[i] for i in index.tolist())
        return dataclasses.replace(self, name=name, paths=paths, labels=self.labels[index])

    def to(self, device: torch.device) -> FolderSplit:
        return dataclasses.replace(self, mean=self.mean.to(device), std=self.std.to(device), device=device)

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
        reading = Reading(self, augment, seed, epoch, part)
        labels = self.labels if self.sampling == "balanced" else None
        order = batch_indices(len(self), batch_size, seed, epoch, first, labels)
        for (batch, whole), images in read_ahead(self.workers, ((at, reading.calls(*at)) for at in order)):
            yield reading.batch(batch, whole, images)


@dataclass(frozen=True)
class Reading:
    """One pass over a split; `whole` are the positions of a batch before it is shared among processes."""

    split: FolderSplit
    augment: Augment
    seed: int | None
    epoch: int
    part: Part

    def calls(self, batch: int, whole: Tensor) -> list[Callable[[], Tensor]]:
        """Each decodes one of this process's images of a batch."""
        decoder = self.split.decoder
        paths = [self.split.paths[i] for i in whole[rows_of(self.part)].tolist()]
        if self.augment != "resize_crop_flip" or self.seed is None:
            return [partial(decoder, path) for path in paths]
        crops = random_crops(decoder.size[0], batch_stream(self.seed, self.epoch, batch), len(whole), self.part)
        drawn = zip(*(a.tolist() for a in (crops.side, crops.down, crops.right, crops.mirrored)), strict=True)
        return [partial(decoder.cropped, path, *how) for path, how in zip(paths, drawn, strict=True)]

    def batch(self, batch: int, whole: Tensor, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised and on the device."""
        device = self.split.device
        none = torch.empty((0, 3, *self.split.decoder.size), dtype=torch.uint8)
        x = torch.stack(images) if images else none
        y = self.split.labels[whole[rows_of(self.part)]]
        if device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if self.seed is not None and self.augment != "resize_crop_flip":
            x = augmented(x, self.augment, batch_stream(self.seed, self.epoch, batch), len(whole), self.part)
        if self.seed is not None and (policy := self.split.auto_augment) != "none":
            drawn = batch_stream(self.seed, self.epoch, batch, 1)
            x = auto_augmented(x, policy, drawn, (0, SCALE), len(whole), self.part)
        return x.to(torch.float32).div_(SCALE).sub_(self.split.mean).div_(self.split.std), y


def dataset(
    train: Listing, test: Listing, section: Settings, fingerprint: str, validation: Listing | None = None
) -> Dataset:
    """Raises UserError. Unless they are set, mean and standard deviation come from at most 1,024 training images,
    evenly spaced."""
    first = read_picture(train.paths[0], FORMATS, section.background)
    side, workers = section.image_size, section.workers
    size = (first.height, first.width) if side is None else (side, side)
    fit = None if side is None else Fit(section.fit, size, section.resize or side, section.background)
    decoder = Decoder(size, fit, section.background)
    some = train.paths[:: -(-len(train.paths) // MOMENTS_FROM)]
    fixed = normalisation(section, 3, str(train.folder))
    mean, std = fixed or moments([decoder(path)[None] for path in some], SCALE, str(train.folder))
    columns = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    parts = {"train": train, "test": test, **({} if validation is None else {"validation": validation})}
    how = (decoder, *columns, torch.device("cpu"), workers)
    splits = {name: FolderSplit(name, one.paths, torch.tensor(one.labels), *how) for name, one in parts.items()}
    return Dataset(
        splits["train"],
        splits["test"],
        *(train.names, (3, *size), mean, std, SCALE, fingerprint, fit),
        notes=tuple(one.note() for one in parts.values()),
        validation=splits.get("validation"),
    )
