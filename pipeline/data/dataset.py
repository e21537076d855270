"""What every data source gives: two splits of images, their classes, and how a pixel becomes a network's input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from runtime.images import Fit, Policy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Augment = Literal["none", "shift", "crop_flip", "zero_crop_flip", "resize_crop_flip"]
AutoAugment = Literal["none", "randaugment", "trivialaugment"]
Sampling = Literal["shuffled", "balanced"]
Part = tuple[int, int]
"""(rank, world): every world-th image of each batch, from the rank-th on."""
WHOLE: Part = (0, 1)
ROOM = 32 * 224 * 224
IGNORED = 255
"""In a map of classes: no label."""


class Split(Protocol):
    """One part of the images; what `batches` yields lies on the device given to `to` (at first the CPU)."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Tensor:
        """int64 (N,), on the CPU, of images with one class; where images have other targets, empty."""

    def __len__(self) -> int: ...

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
        """Pairs x float32 (B, C, H, W), normalised, and targets y (B, ...), from the batch numbered `first` on: one
        tensor, as `Dataset.targets` says.

        Without a seed: in order, the last partial batch kept. With one: the order follows from (seed, epoch) alone,
        the augmentation of an image from those and its place, and a last partial batch is dropped where at least one
        full batch exists. `part`: this process's images of each batch.
        """

    def to(self, device: torch.device) -> Split:
        """The same split with its batches on `device`; small sets are moved there as a whole."""


def at_once(split: Split, most: int) -> int:
    """How many images of a split a network takes at once without a gradient: `most`, and fewer large ones where it
    answers for each place of an image, as 32 of 224x224 pixels are."""
    x, y = next(iter(split.batches(1)))
    if y.ndim == 1:
        return most
    return max(1, min(most, ROOM // (x.shape[-2] * x.shape[-1])))


@dataclass(frozen=True)
class Dataset:
    """A network sees (pixel / scale - mean) / std, per channel."""

    train: Split
    test: Split
    names: tuple[str, ...]
    """Classes; label k is names[k]."""
    input_shape: tuple[int, int, int]
    """(C, H, W)."""
    mean: tuple[float, ...]
    """Per channel, of pixel / scale: `data.mean`, else over the training split."""
    std: tuple[float, ...]
    """As mean; > 0."""
    scale: float
    """255 for uint8 pixels, 1 for float ones (the digits run 0..16)."""
    fingerprint: str
    """Of the content that was read."""
    fit: Fit | None = None
    """How an image of another size becomes one of `input_shape`; None where all have that size."""
    notes: tuple[str, ...] = ()
    """What a person should know of the files: those that were left out."""
    validation: Split | None = None
    """Images that choices are made on, so that the test split judges once; None: it does both."""
    targets: str = "class"
    """What a batch's targets are: "class" int64 (B,); "labels" float32 (B, K) of 0 and 1; "map" uint8 (B, H, W), the
    class of each pixel and IGNORED where it has none; "boxes", of each image as many rows as the split's fullest has;
    or a word of one's own, for a task of one's own."""

    @property
    def choosing(self) -> Split:
        """The split that choices are made on."""
        return self.test if self.validation is None else self.validation


class Settings(Protocol):
    """The keys of the config's section `data` that sources read."""

    @property
    def source(self) -> str: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def resize(self) -> int | None: ...
    @property
    def fit(self) -> Policy: ...
    @property
    def background(self) -> tuple[int, int, int]: ...
    @property
    def mean(self) -> tuple[float, ...] | None: ...
    @property
    def std(self) -> tuple[float, ...] | None: ...
    @property
    def channels_first(self) -> bool | None: ...
    @property
    def root(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def validation(self) -> float | Literal["val"]: ...


class Source(Protocol):
    """Where images come from: a class whose constructor takes what follows the colon of `data.source`, and the section.

    Constructing it reads nothing; both methods raise UserError naming the item at fault.
    """

    def __init__(self, text: str, section: Settings) -> None: ...

    def fingerprint(self) -> str:
        """Changes when what `load` reads changes; cheap where it can be, as every run asks for it."""

    def load(self, fingerprint: str) -> Dataset:
        """Reads and checks the set."""
