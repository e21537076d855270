"""The same images at a lower resolution."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import data as sources
from pipeline.config import Config
from pipeline.data import Dataset, Split
from pipeline.data.arrays import ArraySplit
from runtime.errors import UserError


def sides_of(side: int) -> list[int]:
    """Sides to try, the largest first: multiples of 8 of large images, every one of small ones; at least a quarter."""
    step = 8 if side >= 64 else 4 if side >= 24 else 1
    return [s for s in range(side - step, 0, -step) if 4 * s >= side]


def resized(settings: Config, data: Dataset, side: int) -> Dataset:
    """The images with `side` in place of their height (and their width in proportion), normalised as before. UserError
    where labels are places in the image, or the images are neither a folder's nor arrays."""
    if data.targets != "class":
        raise UserError(
            f"labels are {data.targets}, which are places in the image", "one class an image", "leave it out"
        )
    channels, height, width = data.input_shape
    section = settings.data
    if section.image_size is not None:
        resize = None if section.resize is None else round(section.resize * side / section.image_size)
        update = {"image_size": side, "resize": resize, "mean": data.mean, "std": data.std}
        return sources.load(section.model_copy(update=update))
    size = side, max(1, round(width * side / height))
    validation = None if data.validation is None else _split(data.validation, size)
    train, test = _split(data.train, size), _split(data.test, size)
    return dataclasses.replace(data, input_shape=(channels, *size), train=train, test=test, validation=validation)


def _split(split: Split, size: tuple[int, int]) -> ArraySplit:
    if not isinstance(split, ArraySplit):
        raise UserError("images of a source of one's own", "a folder of images, or arrays", "leave it out")
    return dataclasses.replace(split, images=_images(split.images, size))


def _images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased, in the type they had."""
    chunks = [
        functional.interpolate(chunk.float(), size, mode="bilinear", antialias=True, align_corners=False)
        for chunk in torch.split(images, 4096)
    ]
    whole = torch.cat(chunks)
    return whole.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else whole.to(images.dtype)
