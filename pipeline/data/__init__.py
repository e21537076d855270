"""Images and labels: one `Dataset` from the embedded digits, npz, torchvision, an image folder or the user's function.

Importing this package loads neither torch nor numpy, so `fingerprint` stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline import config, lookup
from runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Augment = Literal["none", "shift", "crop_flip", "zero_crop_flip", "resize_crop_flip"]
Part = tuple[int, int]
"""(rank, world): every world-th image of each batch, from the rank-th on."""
WHOLE: Part = (0, 1)
SOURCES = ("digits", "npz:FILE", "torchvision:NAME", "imagefolder:DIR", "module:function")


class Split(Protocol):
    """One part of the images; what `batches` yields lies on the device given to `to` (at first the CPU)."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Tensor:
        """int64 (N,), on the CPU."""

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
        """Pairs x float32 (B, C, H, W), normalised, and y int64 (B,), from the batch numbered `first` on.

        Without a seed: in order, the last partial batch kept. With one: the order follows from (seed, epoch) alone,
        the augmentation of an image from those and its place, and a last partial batch is dropped where at least one
        full batch exists. `part`: this process's images of each batch.
        """

    def to(self, device: torch.device) -> Split:
        """The same split with its batches on `device`; small sets are moved there as a whole."""


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
    """Per channel over the training split, of pixel / scale."""
    std: tuple[float, ...]
    """As mean; > 0."""
    scale: float
    """255 for uint8 pixels, 1 for float ones (the digits run 0..16)."""
    fingerprint: str
    """Of the content, see `fingerprint`."""


def load(section: config.Data) -> Dataset:
    """Reads and checks the set that `section.source` names. Raises UserError naming the item at fault."""
    from pipeline.data import arrays, folder, paths, sources

    kind, _, rest = section.source.partition(":")
    mark = fingerprint(section)
    match kind:
        case "imagefolder":
            return folder.dataset(paths.folder_path(rest), section, mark)
        case "digits":
            raw = sources.digits()
        case "npz":
            raw = sources.npz(paths.file_path(rest))
        case "torchvision":
            raw = sources.torchvision_set(rest, paths.root_path(section.root))
        case _:
            raw = sources.from_function(section.source)
    return arrays.dataset(raw, section.image_size, mark)


def fingerprint(section: config.Data) -> str:
    """sha256 that changes when the images may have.

    Of the bytes of the files of digits, npz and torchvision sets; of relative paths, sizes and modification times in
    an image folder; of the arrays that a user's function returns, which is called for it.

    A torchvision set that is not there yet is downloaded first, so that the answer stays the same afterwards.
    """
    from pipeline.data import marks

    kind, _, rest = section.source.partition(":")
    match kind:
        case "digits" if not rest:
            return marks.of_digits()
        case "npz":
            return marks.of_npz(rest)
        case "torchvision":
            return marks.of_torchvision(rest, section.root)
        case "imagefolder":
            return marks.of_folder(rest)
    if not lookup.MODULE_FUNCTION.fullmatch(section.source):
        raise UserError(
            f'data.source is "{section.source}"',
            f"one of {', '.join(SOURCES)}",
            f"perhaps {lookup.nearest(kind, ['digits', 'npz:FILE', 'torchvision:NAME', 'imagefolder:DIR'], 1)}",
        )
    return marks.of_function(section.source)
