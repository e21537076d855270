"""Sets held in memory as one tensor: the checks, and the split that batches come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import augmented, auto_augmented, batch_indices, batch_stream, rows_of
from pipeline.data.dataset import IGNORED, WHOLE, Augment, AutoAugment, Dataset, Part, Sampling, Settings
from pipeline.data.raw import Raw
from runtime.errors import UserError
from runtime.images import Fit, fitted_mask

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
    """int64 (N,), a class each, or uint8 (N, H, W), maps of classes."""
    scale: float
    mean: Tensor
    """(C, 1, 1), as std."""
    std: Tensor
    device: torch.device
    sampling: Sampling = "shuffled"
    auto_augment: AutoAugment = "none"
    """Both of batches with a seed and an augmentation, as a training has them; see `varied`."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def span(self) -> tuple[float, float]:
        """Smallest and largest pixel, 0 among them, which comes in at borders."""
        low, high = self.images.aminmax()
        return min(0.0, float(low)), max(0.0, float(high))

    def to(self, device: torch.device) -> ArraySplit:
        resident = self.images.numel() * self.images.element_size() <= RESIDENT_BYTES
        images = self.images.to(device) if resident else self.images
        return replace(self, images=images, mean=self.mean.to(device), std=self.std.to(device), device=device)

    def subset(self, index: Tensor, name: str) -> ArraySplit:
        return replace(self, name=name, images=self.images[index], labels=self.labels[index])

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
        labels = self.labels if self.sampling == "balanced" else None
        for batch, whole in batch_indices(len(self), batch_size, seed, epoch, first, labels):
            index = whole[rows_of(part)]
            x = self.images[index.to(self.images.device)].to(self.device)
            y = self.labels[index].to(self.device)
            if seed is not None:
                x = augmented(x, augment, batch_stream(seed, epoch, batch), len(whole), part)
            if seed is not None and self.auto_augment != "none":
                drawn = batch_stream(seed, epoch, batch, 1)
                x = auto_augmented(x, self.auto_augment, drawn, self.span, len(whole), part)
            if seed is not None and y.ndim == 3:
                random = batch_stream(seed, epoch, batch)
                y = augmented(y[:, None], augment, random, len(whole), part, outside=IGNORED)[:, 0]
            x = x.to(torch.float32, copy=True).div_(self.scale).sub_(self.mean).div_(self.std)
            yield x, y


def dataset(raw: Raw, section: Settings | None, fingerprint: str) -> Dataset:
    """Checks everything, then normalises as `section` says, by default by the training split. Raises UserError."""
    settled = None if section is None else section.channels_first
    x_train = _images(raw.x_train, f"{raw.origin}: x_train", settled)
    x_test = _images(raw.x_test, f"{raw.origin}: x_test", settled)
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise UserError(
            f"{raw.origin}: x_train is {_kind(x_train)} and x_test {_kind(x_test)} (N, C, H, W)",
            "images of one size and type",
            "convert one of them",
        )
    y_train = _labels(raw.y_train, f"{raw.origin}: y_train", x_train)
    y_test = _labels(raw.y_test, f"{raw.origin}: y_test", x_test)
    names = _names(raw, y_train, y_test)
    fit = None
    if section is not None and (side := section.image_size) is not None:
        x_train, x_test, fit = _resized(x_train, side), _resized(x_test, side), Fit("crop", (side, side), side)
        if y_train.ndim == 3:
            y_train, y_test = (torch.stack([_fitted(mask, fit) for mask in masks]) for masks in (y_train, y_test))
    scale = 255.0 if x_train.dtype == torch.uint8 else 1.0
    shape = (int(x_train.shape[1]), int(x_train.shape[2]), int(x_train.shape[3]))
    fixed = None if section is None else normalisation(section, shape[0], raw.origin)
    mean, std = fixed or moments([x_train], scale, f"{raw.origin}: x_train")
    columns = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    cpu = torch.device("cpu")
    return Dataset(
        ArraySplit("train", x_train, y_train, scale, *columns, cpu),
        ArraySplit("test", x_test, y_test, scale, *columns, cpu),
        *(names, shape, mean, std, scale, fingerprint, fit),
        targets="map" if y_train.ndim == 3 else "class",
    )


def normalisation(section: Settings, channels: int, origin: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """data.mean and data.std for each channel, None where they are not set. UserError: another number of channels."""
    if section.mean is None or section.std is None:
        return None
    for key, values in (("mean", section.mean), ("std", section.std)):
        if len(values) not in (1, channels):
            raise UserError(
                f"data.{key} has {len(values)} values, and images of {origin} {channels} channels",
                f"1 or {channels} values",
                f"mend data.{key}",
            )
    mean, std = (tuple(values) * (channels // len(values)) for values in (section.mean, section.std))
    return mean, std


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


def _images(x: NDArray[Any], item: str, channels_first: bool | None) -> Tensor:
    """uint8 or float32 (N, C, H, W)."""
    if x.dtype.hasobject or not (x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating)):
        raise UserError(f"{item} has type {x.dtype}", "uint8 or float pixels", "convert it: x.astype(np.float32)")
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise UserError(f"{item} has shape {x.shape}", "images (N, H, W) or (N, H, W, C)", "reshape it")
    if x.ndim == 4 and channels_first:
        x = x.transpose(0, 2, 3, 1)
    elif (
        x.ndim == 4 and channels_first is None and x.shape[1] <= MANY_CHANNELS < x.shape[3] and x.shape[1] != x.shape[2]
    ):
        raise UserError(
            f"{item} has shape {x.shape}, which may be (N, C, H, W) or (N, H, W, C)",
            "a layout that is certain",
            "set data.channels_first: true if C comes before H and W, false if it comes last",
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


def _labels(y: NDArray[Any], item: str, x: Tensor) -> Tensor:
    """int64 (N,), or uint8 (N, H, W), of images (N, C, H, W)."""
    n = len(x)
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{item} has type {y.dtype}", "integer class numbers", "convert it: y.astype(np.int64)")
    if y.ndim == 3:
        return _maps(y, item, (n, *x.shape[2:]))
    if y.shape != (n,):
        raise UserError(f"{item} has shape {y.shape}", f"({n},), one label for each image", "mend the labels")
    if y.min() < 0:
        at = int(np.argmin(y >= 0))
        raise UserError(f"label {at} of {item} is {y[at]}", "class numbers from 0 on", "mend the labels")
    return torch.from_numpy(y.astype(np.int64))


def _maps(y: NDArray[Any], item: str, expected: tuple[int, ...]) -> Tensor:
    if y.shape != expected:
        raise UserError(f"{item} has shape {y.shape}", f"{expected}, a label for each pixel", "mend the maps")
    if y.min() < 0 or y.max() > IGNORED:
        problem = f"{item} holds labels from {y.min()} to {y.max()}"
        raise UserError(problem, f"classes from 0 on, or {IGNORED} for no label", "mend the maps")
    return torch.from_numpy(y.astype(np.uint8))


def _names_of_maps(raw: Raw, y_train: Tensor, y_test: Tensor) -> tuple[str, ...]:
    largest = int(y_train[y_train != IGNORED].max()) if bool((y_train != IGNORED).any()) else -1
    names = raw.names or tuple(str(k) for k in range(largest + 1))
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        beyond = ((y >= len(names)) & (y != IGNORED)).flatten(1).any(1)
        if bool(beyond.any()):
            at = int(beyond.to(torch.uint8).argmax())
            label = int(y[at][(y[at] >= len(names)) & (y[at] != IGNORED)].min())
            raise UserError(
                f"map {at} of {raw.origin}: {key} has the label {label}",
                f"0 to {len(names) - 1} ({len(names)} classes{' named' if raw.names else ' in y_train'}), or {IGNORED}",
                "mend the maps or the names",
            )
    return names


def _names(raw: Raw, y_train: Tensor, y_test: Tensor) -> tuple[str, ...]:
    names = _names_of_maps(raw, y_train, y_test) if y_train.ndim == 3 else _names_of_labels(raw, y_train, y_test)
    if len(names) < 2:
        raise UserError(f"{raw.origin} has one class", "at least two classes", "mend the labels")
    return names


def _names_of_labels(raw: Raw, y_train: Tensor, y_test: Tensor) -> tuple[str, ...]:
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
    return names


def _resized(x: Tensor, size: int) -> Tensor:
    """Shorter side to `size`, then the middle (size, size)."""
    from torchvision.transforms.v2 import functional

    parts = [
        functional.center_crop(functional.resize(part, [size], antialias=True), [size])
        for part in torch.split(x, CHUNK)
    ]
    return torch.cat(parts)


def _fitted(mask: Tensor, fit: Fit) -> Tensor:
    return torch.from_numpy(fitted_mask(mask.numpy(), fit))


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
