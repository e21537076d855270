"""Folders of images, decoded when a batch needs them: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from pipeline import config
from pipeline.data import WHOLE, Augment, Dataset, Part
from pipeline.data.arrays import moments
from pipeline.data.batching import augmented, batch_indices, batch_stream, random_crops, rows_of
from runtime.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""By content, whatever the name says (photos from the web are often GIFs called .jpg). Pillow's other readers are many,
and the one of EPS starts Ghostscript."""
MOMENTS_FROM = 1024
AHEAD = 2
"""Batches that are decoded while one is used."""
SCALE = 255.0


@dataclass(frozen=True)
class Decoder:
    """A file as uint8 (3, H, W), RGB, of `size` (H, W). With `resize` the shorter side is resized to it and the middle
    cut out; without, every image must have that size already."""

    size: tuple[int, int]
    resize: int | None

    def __call__(self, path: Path) -> Tensor:
        image = opened(path)
        if self.resize is not None:
            image = v2.Compose([v2.Resize(self.resize), v2.CenterCrop(self.size)])(image)
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
        image = v2.functional.resize(opened(path), [side])
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

    def __len__(self) -> int:
        return len(self.paths)

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
        ahead: deque[tuple[int, Tensor, list[Future[Tensor]]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for batch, whole in batch_indices(len(self), batch_size, seed, epoch, first):
                    ahead.append((batch, whole, reading.submit(pool, batch, whole)))
                    if len(ahead) > AHEAD:
                        yield reading.batch(*ahead.popleft())
                while ahead:
                    yield reading.batch(*ahead.popleft())
            finally:
                for _, _, images in ahead:
                    for image in images:
                        image.cancel()


@dataclass(frozen=True)
class Reading:
    """One pass over a split; `whole` are the positions of a batch before it is shared among processes."""

    split: FolderSplit
    augment: Augment
    seed: int | None
    epoch: int
    part: Part

    def submit(self, pool: ThreadPoolExecutor, batch: int, whole: Tensor) -> list[Future[Tensor]]:
        """Start to decode this process's images of a batch."""
        decoder = self.split.decoder
        paths = [self.split.paths[i] for i in whole[rows_of(self.part)].tolist()]
        if self.augment != "resize_crop_flip" or self.seed is None:
            return [pool.submit(decoder, path) for path in paths]
        crops = random_crops(decoder.size[0], batch_stream(self.seed, self.epoch, batch), len(whole), self.part)
        drawn = zip(*(a.tolist() for a in (crops.side, crops.down, crops.right, crops.mirrored)), strict=True)
        return [pool.submit(decoder.cropped, path, *how) for path, how in zip(paths, drawn, strict=True)]

    def batch(self, batch: int, whole: Tensor, images: list[Future[Tensor]]) -> tuple[Tensor, Tensor]:
        """Wait for the images; normalised and on the device."""
        device = self.split.device
        none = torch.empty((0, 3, *self.split.decoder.size), dtype=torch.uint8)
        x = torch.stack([image.result() for image in images]) if images else none
        y = self.split.labels[whole[rows_of(self.part)]]
        if device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if self.seed is not None and self.augment != "resize_crop_flip":
            x = augmented(x, self.augment, batch_stream(self.seed, self.epoch, batch), len(whole), self.part)
        return x.to(torch.float32).div_(SCALE).sub_(self.split.mean).div_(self.split.std), y


def dataset(folder: Path, section: config.Data, fingerprint: str) -> Dataset:
    """Raises UserError. Mean and standard deviation come from at most 1,024 training images, evenly spaced."""
    names = _classes(folder / "train")
    train, y_train = _listed(folder / "train", names)
    test, y_test = _listed(folder / "val", names)
    first = opened(train[0])
    side, workers = section.image_size, section.workers
    size = (first.height, first.width) if side is None else (side, side)
    decoder = Decoder(size, section.resize or side)
    some = train[:: -(-len(train) // MOMENTS_FROM)]
    mean, std = moments([decoder(path)[None] for path in some], SCALE, str(folder / "train"))
    columns = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    cpu = torch.device("cpu")
    return Dataset(
        FolderSplit("train", train, y_train, decoder, *columns, cpu, workers),
        FolderSplit("test", test, y_test, decoder, *columns, cpu, workers),
        *(names, (3, *size), mean, std, SCALE, fingerprint),
    )


def opened(path: Path) -> Image.Image:
    """Decoded, RGB. Raises UserError naming the file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and others
        raise UserError(
            f"{path} cannot be decoded ({error})",
            f"one of {', '.join(FORMATS)}",
            "mend or convert the file, or take it out of the folder",
        ) from error


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", "train/CLASS/ and val/CLASS/ with images", "make it")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(train: Path) -> tuple[str, ...]:
    names = tuple(_folders(train))
    if len(names) < 2:
        raise UserError(
            f"{train} holds {len(names)} class folders", "at least two", "sort the images into train/CLASS/"
        )
    return names


def _listed(part: Path, names: tuple[str, ...]) -> tuple[tuple[Path, ...], Tensor]:
    """Image files in order of class and name, and their labels."""
    paths: list[Path] = []
    labels: list[int] = []
    for name in _folders(part):
        if name not in names:
            raise UserError(f"{part / name} is no class of train/", f"one of {', '.join(names[:10])}", "rename it")
        images = sorted(
            path
            for path in (part / name).iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not images:
            raise UserError(f"{part / name} holds no image", f"files {', '.join(sorted(SUFFIXES))}", "add some")
        paths += images
        labels += [names.index(name)] * len(images)
    if not paths:
        raise UserError(f"{part} holds no image", "CLASS/ folders with images", "add some")
    return tuple(paths), torch.tensor(labels)
