"""Sets held in memory as one tensor: the checks, and the split that batches come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import WHOLE, Augment, Dataset, Part
from pipeline.data.batching import augmented, batch_indices, batch_stream, rows_of
from pipeline.data.sources import Raw
from runtime.errors import UserError

RESIDENT_BYTES = 2 << 30
"""Largest split that is moved to an accelerator as a whole."""
MANY_CHANNELS = 4
FLAT = 1e-12
CHUNK = 4096


@dataclass(frozen=True)
class ArraySplit:
    """`images` uint8 or float32 (N, C, H, W); normalised as each batch is made."""

    name: str
    images: Tensor
    labels: Tensor
    scale: float
    mean: Tensor
    """(C, 1, 1), as std."""
    std: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> ArraySplit:
        resident = self.images.numel() * self.images.element_size() <= RESIDENT_BYTES
        images = self.images.to(device) if resident else self.images
        return ArraySplit(self.name, images, self.labels, self.scale, self.mean.to(device), self.std.to(device), device)

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
        for batch, whole in batch_indices(len(self), batch_size, seed, epoch, first):
            index = whole[rows_of(part)]
            x = self.images[index.to(self.images.device)].to(self.device)
            if seed is not None:
                x = augmented(x, augment, batch_stream(seed, epoch, batch), len(whole), part)
            x = x.to(torch.float32, copy=True).div_(self.scale).sub_(self.mean).div_(self.std)
            yield x, self.labels[index].to(self.device)


def dataset(raw: Raw, image_size: int | None, fingerprint: str) -> Dataset:
    """Checks everything, then normalises by the training split. Raises UserError."""
    x_train = _images(raw.x_train, f"{raw.origin}: x_train")
    x_test = _images(raw.x_test, f"{raw.origin}: x_test")
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise UserError(
            f"{raw.origin}: x_train is {_kind(x_train)} and x_test {_kind(x_test)} (N, C, H, W)",
            "images of one size and type",
            "convert one of them",
        )
    y_train = _labels(raw.y_train, f"{raw.origin}: y_train", len(x_train))
    y_test = _labels(raw.y_test, f"{raw.origin}: y_test", len(x_test))
    names = _names(raw, y_train, y_test)
    if image_size is not None:
        x_train, x_test = _resized(x_train, image_size), _resized(x_test, image_size)
    scale = 255.0 if x_train.dtype == torch.uint8 else 1.0
    mean, std = moments([x_train], scale, f"{raw.origin}: x_train")
    shape = (int(x_train.shape[1]), int(x_train.shape[2]), int(x_train.shape[3]))
    columns = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    cpu = torch.device("cpu")
    return Dataset(
        ArraySplit("train", x_train, y_train, scale, *columns, cpu),
        ArraySplit("test", x_test, y_test, scale, *columns, cpu),
        *(names, shape, mean, std, scale, fingerprint),
    )


def moments(parts: list[Tensor], scale: float, origin: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixel / scale over all parts (N, C, H, W), in float64."""
    chunks = [chunk for part in parts for chunk in torch.split(part, CHUNK)]
    count = sum(chunk[:, 0].numel() for chunk in chunks)
    mean = torch.stack([_per_channel(chunk, scale).sum(1) for chunk in chunks]).sum(0) / count
    offsets = torch.stack([(_per_channel(chunk, scale) - mean[:, None]).square().sum(1) for chunk in chunks])
    std = (offsets.sum(0) / count).sqrt()
    for channel, value in enumerate(std.tolist()):
        if value <= FLAT * max(1.0, abs(float(mean[channel]))):
            raise UserError(
                f"channel {channel} of {origin} has the same value in every pixel", "channels that vary", "leave it out"
            )
    return tuple(mean.tolist()), tuple(std.tolist())


def _per_channel(x: Tensor, scale: float) -> Tensor:
    return x.to(torch.float64).div_(scale).transpose(0, 1).flatten(1)


def _images(x: NDArray[Any], item: str) -> Tensor:
    """uint8 or float32 (N, C, H, W)."""
    if x.dtype.hasobject or not (x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating)):
        raise UserError(f"{item} has type {x.dtype}", "uint8 or float pixels", "convert it: x.astype(np.float32)")
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise UserError(f"{item} has shape {x.shape}", "images (N, H, W) or (N, H, W, C)", "reshape it")
    if x.ndim == 4 and x.shape[1] <= MANY_CHANNELS < x.shape[3]:
        raise UserError(
            f"{item} has shape {x.shape}, which looks like (N, C, H, W)",
            "(N, H, W) or (N, H, W, C)",
            "turn it: x.transpose(0, 2, 3, 1)",
        )
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        finite = np.isfinite(x).all(axis=(1, 2, 3))
        if not finite.all():
            raise UserError(
                f"image {int(np.argmin(finite))} of {item} holds NaN or infinity as float32",
                "finite pixels",
                "mend or drop the image",
            )
    return torch.from_numpy(np.array(x, order="C"))


def _labels(y: NDArray[Any], item: str, n: int) -> Tensor:
    """int64 (N,)."""
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{item} has type {y.dtype}", "integer class numbers", "convert it: y.astype(np.int64)")
    if y.shape != (n,):
        raise UserError(f"{item} has shape {y.shape}", f"({n},), one label for each image", "mend the labels")
    if y.min() < 0:
        at = int(np.argmin(y >= 0))
        raise UserError(f"label {at} of {item} is {y[at]}", "class numbers from 0 on", "mend the labels")
    return torch.from_numpy(y.astype(np.int64))


def _names(raw: Raw, y_train: Tensor, y_test: Tensor) -> tuple[str, ...]:
    names = raw.names or tuple(str(k) for k in range(int(y_train.max()) + 1))
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        high = y >= len(names)
        if bool(high.any()):
            at = int(high.to(torch.uint8).argmax())
            raise UserError(
                f"label {at} of {raw.origin}: {key} is {int(y[at])}",
                f"0 to {len(names) - 1} ({len(names)} classes{' named' if raw.names else ' in y_train'})",
                "mend the labels or the names",
            )
    empty = torch.bincount(y_train, minlength=len(names)) == 0
    if bool(empty.any()):
        at = int(empty.to(torch.uint8).argmax())
        raise UserError(
            f"class {at} ({names[at]}) of {raw.origin} has no training image",
            "at least one image in every class",
            "number the classes without gaps, or drop the name",
        )
    if len(names) < 2:
        raise UserError(f"{raw.origin} has one class", "at least two classes", "mend the labels")
    return names


def _resized(x: Tensor, size: int) -> Tensor:
    """Shorter side to `size`, then the middle (size, size)."""
    from torchvision.transforms.v2 import functional

    parts = [
        functional.center_crop(functional.resize(part, [size], antialias=True), [size])
        for part in torch.split(x, CHUNK)
    ]
    return torch.cat(parts)


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
