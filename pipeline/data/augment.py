"""Order and augmentation of batches; both follow from (seed, epoch, batch) alone, whatever the device.

So a training goes on in the middle of an epoch as if it had never stopped, and several processes that share a batch
see the images that one process would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import WHOLE, Augment, AutoAugment, Dataset, Part, Sampling, Split
from runtime.errors import UserError

Integers = NDArray[np.int64]


def order_of(n: int, seed: int | None, epoch: int, labels: Tensor | None = None) -> Tensor:
    """int64 (n,): the positions of an epoch in their order, shuffled where there is a seed; with `labels` int64 (n,) as
    many of each class."""
    if seed is None:
        return torch.arange(n)
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    return torch.from_numpy(random.permutation(n) if labels is None else _balanced(labels.numpy(), random))


def _balanced(labels: Integers, random: np.random.Generator) -> Integers:
    """Of each class n / K positions, or one more; none comes again before all of its class have come."""
    classes = random.permutation(np.unique(labels))
    parts = []
    for rank, label in enumerate(classes):
        own, count = np.flatnonzero(labels == label), (len(labels) + len(classes) - 1 - rank) // len(classes)
        rounds = [random.permutation(own) for _ in range(-(-count // len(own)))]
        parts.append(np.concatenate([*rounds, own[:0]])[:count])
    positions: Integers = random.permutation(np.concatenate(parts))
    return positions


def batch_stream(seed: int, epoch: int, batch: int, *purpose: int) -> np.random.Generator:
    """What the augmentation of one batch is drawn from; for each `purpose` another one."""
    return np.random.Generator(np.random.PCG64([seed, epoch, batch + 1, *purpose]))


def batch_indices(
    n: int, batch_size: int, seed: int | None, epoch: int, first: int = 0, labels: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Number of each batch and its positions int64 (B,), from the batch `first` on; `labels` as in `order_of`.

    With a seed a last partial batch is dropped unless it is all.
    """
    assert batch_size >= 1, batch_size
    order = order_of(n, seed, epoch, labels)
    for batch, start in enumerate(range(0, n, batch_size)):
        index = order[start : start + batch_size]
        if batch >= first and (seed is None or len(index) == batch_size or start == 0):
            yield batch, index


def rows_of(part: Part) -> slice:
    """Which rows of a batch are this process's."""
    return slice(part[0], None, part[1])


def augmented(
    x: Tensor,
    augment: Augment,
    random: np.random.Generator,
    n: int | None = None,
    part: Part = WHOLE,
    outside: int = 0,
) -> Tensor:
    """x (B, C, H, W) of raw pixels, on any device: the rows `part` of a batch of `n` images (B where not given).

    shift: moved by up to 1/8 of the side, pixels of value `outside` come in. crop_flip: the same with reflected
    borders, and mirrored left to right half of the time. zero_crop_flip: the same with such borders.
    """
    if augment == "none":
        return x
    assert augment != "resize_crop_flip", "images of one size are not resized"
    high, wide = (_reach(side) for side in x.shape[2:])
    rows, n = rows_of(part), len(x) if n is None else n
    down = random.integers(0, 2 * high + 1, n)[rows]
    right = random.integers(0, 2 * wide + 1, n)[rows]
    mirrored = np.zeros(n, dtype=bool) if augment == "shift" else random.random(n) < 0.5
    padding = (wide, wide, high, high)
    if augment == "crop_flip":
        padded = F.pad(x, padding, mode="reflect") if x.is_floating_point() else _reflected(x, padding)
    else:
        padded = F.pad(x, padding, value=outside)
    return _windows(padded, down, right, mirrored[rows], (x.shape[2], x.shape[3]))


def auto_augmented(
    x: Tensor, policy: AutoAugment, random: np.random.Generator, span: tuple[float, float], n: int, part: Part = WHOLE
) -> Tensor:
    """x (B, C, H, W) of raw pixels, each changed by torchvision's policy for itself: the rows `part` of a batch of `n`.
    Pixels of floats lie in `span`, and stay there."""
    if policy == "none":
        return x
    from torchvision.transforms import v2

    change = v2.RandAugment() if policy == "randaugment" else v2.TrivialAugmentWide()
    seeds = random.integers(0, 2**63, n)[rows_of(part)]
    low, high = span
    levels = ((x - low) / (high - low)).clamp_(0, 1) if x.is_floating_point() else x
    changed = []
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global state
        for image, seed in zip(levels, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(change(image))
    result = torch.stack(changed) if changed else levels
    return result * (high - low) + low if x.is_floating_point() else result


def varied(data: Dataset, sampling: Sampling, policy: AutoAugment) -> Split:
    """The training split whose shuffled, augmented batches are drawn so. UserError where its images cannot be."""
    split = data.train
    if policy != "none" and data.input_shape[0] not in (1, 3):
        problem = f"auto_augment {policy} and images of {data.input_shape[0]} channels"
        raise UserError(problem, "1 or 3 channels", "set auto_augment: none")
    changes = {"sampling": (sampling, "shuffled"), "auto_augment": (policy, "none")}
    other = {key: value for key, (value, usual) in changes.items() if value != usual}
    for key, value in other.items():
        fits = ("class", "labels") if key == "auto_augment" else ("class",)
        if not hasattr(split, key) or data.targets not in fits:
            kind = f"whose targets are of the kind {data.targets}"
            kind = kind if data.targets not in fits else f"of the kind {type(split).__name__}"
            problem = f"{key} {value} and data {kind}"
            raise UserError(problem, "images with one class each", f"leave {key} out")
    changed: Any = split
    return dataclasses.replace(changed, **other) if other else split


Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(mixup: float, cutmix: float, classes: int | None) -> Mix | None:
    """Blends a batch of images (B, C, H, W), labels int64 (B,) or float (B, K), with itself: the labels come back as
    float (B, K). One of the two, drawn for each batch from torch's global state, where both alphas are above 0; None
    where none is. UserError where images have no `classes`."""
    if not (mixup or cutmix):
        return None
    if classes is None:
        problem = f"{'mixup' if mixup else 'cutmix'} {mixup or cutmix:g}, and images that have no one class"
        raise UserError(problem, "task classification, or one that gives `answer`", "set it to 0")
    from torchvision.transforms import v2

    alphas = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    kinds: list[Any] = [kind(alpha=alpha, num_classes=classes) for kind, alpha in alphas if alpha]
    mix: Mix = v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0]
    return mix


@dataclass(frozen=True)
class Crops:
    """How each image of a batch is resized and cropped: `side` the shorter side in pixels after resizing; `down` and
    `right` in [0, 1), the place of the window in what is left over; `mirrored` left to right. All (B,)."""

    side: Integers
    down: NDArray[np.float64]
    right: NDArray[np.float64]
    mirrored: NDArray[np.bool_]


def random_crops(size: int, random: np.random.Generator, n: int, part: Part = WHOLE) -> Crops:
    """Shorter side drawn from 8/7 to 15/7 of `size` (256 to 480 for 224), a window anywhere, mirrored half of the time:
    Simonyan and Zisserman, arXiv 1409.1556, section 3.1."""
    rows = rows_of(part)
    side = random.integers(round(size * 8 / 7), round(size * 15 / 7) + 1, n)[rows]
    down, right = random.random(n)[rows], random.random(n)[rows]
    return Crops(side, down, right, (random.random(n) < 0.5)[rows])


def _reach(side: int) -> int:
    """1/8 of the side, at least 1 pixel where the side allows reflection at all."""
    return min(max(1, side // 8), side - 1)


def _reflected(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Reflection by index: torch pads no integers that way."""
    left, right, top, bottom = padding
    rows = _mirror(torch.arange(-top, x.shape[2] + bottom), x.shape[2]).to(x.device)
    columns = _mirror(torch.arange(-left, x.shape[3] + right), x.shape[3]).to(x.device)
    return x[:, :, rows][:, :, :, columns]


def _mirror(position: Tensor, side: int) -> Tensor:
    position = position.abs()
    return torch.where(position >= side, 2 * (side - 1) - position, position)


def _windows(x: Tensor, top: Integers, left: Integers, mirrored: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """From each image its window of `size` (H, W) at (top, left), read from right to left where mirrored."""
    rows = torch.from_numpy(top[:, None] + np.arange(size[0])).to(x.device)
    across = np.where(mirrored[:, None], np.arange(size[1])[::-1], np.arange(size[1]))
    columns = torch.from_numpy(left[:, None] + across).to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
