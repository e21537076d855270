"""Batches of images with masks, decoded when they are needed; what moves an image moves its mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.data.ahead import read_ahead
from pipeline.data.arrays import moments, normalisation
from pipeline.data.augment import augmented, batch_indices, batch_stream, random_crops, rows_of
from pipeline.data.dataset import IGNORED, WHOLE, Augment, Dataset, Part, Settings
from pipeline.data.folder import FORMATS, MOMENTS_FROM, SCALE, Decoder
from pipeline.data.segmentation.pairs import Pairs
from runtime.images import Fit, fitted_mask, read_mask, read_picture

Pair = tuple[Tensor, Tensor]
"""An image uint8 (3, H, W) and its mask uint8 (H, W)."""
How = tuple[int, float, float, bool]
"""An image of `Crops`: side, down, right, mirrored."""


@dataclass(frozen=True)
class MaskSplit:
    """`images` and `masks` are files; batches x float32 (B, 3, H, W), normalised, and uint8 (B, H, W)."""

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    decoder: Decoder
    mean: Tensor
    """(C, 1, 1), as std."""
    std: Tensor
    device: torch.device
    workers: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """Empty: no image has one class."""
        return torch.empty(0, dtype=torch.int64)

    def subset(self, index: Tensor, name: str) -> MaskSplit:
        """See `Divisible`."""
        images, masks = (tuple(paths[i] for i in index.tolist()) for paths in (self.images, self.masks))
        return dataclasses.replace(self, name=name, images=images, masks=masks)

    def to(self, device: torch.device) -> MaskSplit:
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

        def calls() -> Iterator[tuple[tuple[int, int], list[Callable[[], Pair]]]]:
            for batch, whole in batch_indices(len(self), batch_size, seed, epoch, first):
                hows = self._hows(augment, seed, epoch, batch, len(whole), part)
                indices = enumerate(whole[rows_of(part)].tolist())
                yield (batch, len(whole)), [partial(self._pair, index, hows, at) for at, index in indices]

        for (batch, n), pairs in read_ahead(self.workers, calls()):
            yield self._batch(pairs, augment, seed, epoch, batch, n, part)

    def _hows(self, augment: Augment, seed: int | None, epoch: int, batch: int, n: int, part: Part) -> list[How] | None:
        if augment != "resize_crop_flip" or seed is None:
            return None
        crops = random_crops(min(self.decoder.size), batch_stream(seed, epoch, batch), n, part)
        drawn = (crops.side, crops.down, crops.right, crops.mirrored)
        return list(zip(*(each.tolist() for each in drawn), strict=True))

    def _pair(self, index: int, hows: list[How] | None, at: int) -> Pair:
        image, mask = self.images[index], self.masks[index]
        if hows is not None:
            return self.decoder.cropped(image, *hows[at]), self._cropped(mask, *hows[at])
        pixels, labels = self.decoder(image), read_mask(mask)
        return pixels, torch.from_numpy(labels if self.decoder.fit is None else fitted_mask(labels, self.decoder.fit))

    def _cropped(self, path: Path, side: int, down: float, right: float, mirrored: bool) -> Tensor:
        """As `Decoder.cropped` crops the image; the nearest label, nothing is mixed."""
        mask: Tensor = v2.functional.resize(tv_tensors.Mask(read_mask(path)), [side])
        size = self.decoder.size
        row, column = int(down * (mask.shape[0] - size[0] + 1)), int(right * (mask.shape[1] - size[1] + 1))
        mask = v2.functional.crop(mask, row, column, *size)
        return (v2.functional.horizontal_flip(mask) if mirrored else mask).as_subclass(Tensor)

    def _batch(
        self, pairs: list[Pair], augment: Augment, seed: int | None, epoch: int, batch: int, n: int, part: Part
    ) -> tuple[Tensor, Tensor]:
        """Normalised and on the device."""
        size = self.decoder.size
        x = torch.stack([pair[0] for pair in pairs]) if pairs else torch.empty((0, 3, *size), dtype=torch.uint8)
        y = torch.stack([pair[1] for pair in pairs]) if pairs else torch.empty((0, *size), dtype=torch.uint8)
        if self.device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        if seed is not None and augment != "resize_crop_flip":
            x, y = moved_together(x, y, augment, seed, epoch, batch, n, part)
        return x.to(torch.float32).div_(SCALE).sub_(self.mean).div_(self.std), y


def moved_together(
    x: Tensor, y: Tensor, augment: Augment, seed: int, epoch: int, batch: int, n: int, part: Part
) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and masks (B, H, W), augmented alike; what comes in from outside has no label."""
    x = augmented(x, augment, batch_stream(seed, epoch, batch), n, part)
    masks = augmented(y[:, None], augment, batch_stream(seed, epoch, batch), n, part, outside=IGNORED)
    return x, masks[:, 0]


def dataset(train: Pairs, test: Pairs, names: tuple[str, ...], section: Settings, fingerprint: str) -> Dataset:
    """Raises UserError. Unless they are set, mean and standard deviation come from at most 1,024 training images,
    evenly spaced."""
    first = read_picture(train.images[0], FORMATS, section.background)
    side, workers = section.image_size, section.workers
    size = (first.height, first.width) if side is None else (side, side)
    fit = None if side is None else Fit(section.fit, size, section.resize or side, section.background)
    decoder = Decoder(size, fit, section.background)
    some = train.images[:: -(-len(train.images) // MOMENTS_FROM)]
    fixed = normalisation(section, 3, str(train.folder))
    mean, std = fixed or moments([decoder(path)[None] for path in some], SCALE, str(train.folder))
    columns = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    cpu = torch.device("cpu")
    return Dataset(
        MaskSplit("train", train.images, train.masks, decoder, *columns, cpu, workers),
        MaskSplit("test", test.images, test.masks, decoder, *columns, cpu, workers),
        *(names, (3, *size), mean, std, SCALE, fingerprint, fit),
        notes=(train.note(), test.note()),
        targets="map",
    )
