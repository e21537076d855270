"""A validation split, held out of the training images: choices are made on it, and the test split judges once."""

from __future__ import annotations

import dataclasses
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Dataset, Split
from runtime.errors import UserError

DRAW = 2403
"""Of which images are held out: the same in every run on the same data, whatever its seed."""


@runtime_checkable
class Divisible(Protocol):
    """A split that can be divided."""

    def subset(self, index: Tensor, name: str) -> Split:
        """Its images `index` int64 (M,), as a split of this name."""


def held_out(data: Dataset, share: float) -> Dataset:
    """The data set with `share` of the training images, of each class where images have one, as `validation`; every
    class keeps an image to train with. Mean and standard deviation stay those of all. UserError where no image would be
    held out, or the images cannot be divided."""
    train = data.train
    if not isinstance(train, Divisible):
        problem = f"data.validation {share:g} and data whose targets are of the kind {data.targets}"
        raise UserError(problem, "a source whose images can be divided", "set data.validation: 0")
    random = np.random.Generator(np.random.PCG64([DRAW, len(train)]))
    labels = train.labels.numpy() if data.targets == "class" else np.zeros(len(train), np.int64)
    held = np.zeros(len(train), dtype=bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        held[random.permutation(own)[: min(round(share * len(own)), len(own) - 1)]] = True
    if not held.any():
        problem = f"data.validation {share:g} of {len(labels)} training images in {labels.max() + 1} classes is none"
        raise UserError(problem, "an image at least", "raise data.validation")
    parts = {name: torch.from_numpy(np.flatnonzero(mask)) for name, mask in (("train", ~held), ("validation", held))}
    train, validation = (cast(Divisible, train).subset(index, name) for name, index in parts.items())
    return dataclasses.replace(data, train=train, validation=validation)
