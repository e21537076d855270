"""A class for each pixel: cross entropy, and Dice where asked, of maps of logits; judged by mean IoU.

Logits (B, K, H, W), or a dict with them under `out`, as torchvision's segmentation networks answer; an auxiliary head
under `aux` is trained too. Targets uint8 (B, H, W): classes 0..K-1; IGNORED and `ignore_index` have no say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.config.section import NonNegative, Section
from pipeline.data.dataset import IGNORED
from pipeline.tasks import Pooled, Task
from pipeline.tasks.pictures import four_of
from runtime.errors import UserError

AUXILIARY = 0.5
"""Weight of the auxiliary head's loss, as in torchvision's reference training."""


class Options(Section):
    ignore_index: Annotated[int, Field(ge=0, le=255)] = Field(
        default=255, description="Label of pixels that are neither learned nor judged, beside 255, which never is."
    )
    dice: NonNegative = Field(default=0.0, description="Weight of the Dice loss, beside the cross entropy's 1.")
    class_weights: tuple[NonNegative, ...] | None = Field(
        default=None, description="Weight of each class in the cross entropy, in the order of the classes; null: 1."
    )


def segmentation(options: Options) -> Task:
    """Of logits (B, K, H, W) and masks (B, H, W)."""
    ignored = options.ignore_index
    return Task(
        "mIoU",
        partial(loss, options=options),
        lambda logits, masks: image_score(overlaps(logits, masks, ignored)),
        pooled=Pooled(lambda logits, masks: overlaps(logits, masks, ignored), mean_iou, constant, by_class),
        targets="map",
        named=maps_of,
        demand=partial(demand, options=options),
        distance=apart,
        draw=partial(four_of, classes=lambda logits: logits.argmax(1), ignored=ignored),
        drawn="image, truth, before and after. The score is the mean IoU of the classes in the image",
    )


def maps_of(answer: Any) -> Any:
    """The logits among what a network answers."""
    return answer["out"] if isinstance(answer, Mapping) and "out" in answer else answer


def loss(answer: Any, masks: Tensor, options: Options) -> Tensor:
    """Cross entropy over the labelled pixels and `dice` times the Dice loss; of an auxiliary head too, with half the
    weight."""
    total = _loss(maps_of(answer), masks, options)
    if isinstance(answer, Mapping) and "aux" in answer:
        total = total + AUXILIARY * _loss(answer["aux"], masks, options)
    return total


def _loss(logits: Tensor, masks: Tensor, options: Options) -> Tensor:
    logits, labelled = logits.float(), valid(masks, options.ignore_index)
    targets = torch.where(labelled, masks.long(), 0)
    scale = labelled.float()
    if options.class_weights is not None:
        scale = scale * logits.new_tensor(options.class_weights)[targets]
    # F.cross_entropy of maps has no deterministic kernel on a GPU, and is NaN where no pixel has a label
    per_pixel = -logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    total = (per_pixel * scale).sum() / scale.sum().clamp(min=1e-9)
    return total + options.dice * dice(logits, targets, labelled) if options.dice else total


def dice(logits: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
    """1 - mean over the batch's classes of 2 |P T| / (|P| + |T|), P the softmax (Milletari et al., arXiv 1606.04797,
    without the squares)."""
    one_hot = F.one_hot(targets, logits.shape[1]).movedim(-1, 1) * labelled[:, None]
    shares = logits.softmax(1) * labelled[:, None]
    axes = (0, 2, 3)
    both, each, there = (shares * one_hot).sum(axes), (shares + one_hot).sum(axes), one_hot.sum(axes) > 0
    return 1 - (2 * both / each.clamp(min=1e-9))[there].sum() / there.sum().clamp(min=1)


def valid(masks: Tensor, ignored: int) -> Tensor:
    """bool (B, H, W): pixels with a label that counts."""
    return (masks != IGNORED) & (masks != ignored)


def overlaps(logits: Tensor, masks: Tensor, ignored: int) -> Tensor:
    """int64 (B, K, 3): of each image and class the pixels in both, in the answer and in the mask; a pixel whose logits
    are not numbers is answered wrongly."""
    images, classes = logits.shape[:2]
    answers = torch.where(logits.isnan().any(1), classes, logits.argmax(1))
    labelled, masks = valid(masks, ignored), masks.long()
    first = torch.arange(images, device=logits.device)[:, None, None] * (classes + 1)

    def counts(of: Tensor, where: Tensor) -> Tensor:
        each = torch.bincount((first + of)[where], minlength=images * (classes + 1))
        return each.view(images, classes + 1)[:, :classes]

    return torch.stack(
        [counts(answers, labelled & (answers == masks)), counts(answers, labelled), counts(masks, labelled)], 2
    )


def image_score(each: Tensor) -> Tensor:
    """(B,): mean IoU over the classes that the image or the answer has; 1 where no pixel has a label."""
    both, union = each[..., 0].double(), (each[..., 1] + each[..., 2] - each[..., 0]).double()
    there = union > 0
    total = (both / union.clamp(min=1)).sum(1) / there.sum(1).clamp(min=1)
    return torch.where(there.any(1), total, 1.0)


def ious(sums: NDArray[Any]) -> NDArray[np.float64]:
    """(..., K, 3) -> (..., K): intersection over union of each class; NaN where neither mask nor answer has it."""
    both = sums[..., 0].astype(np.float64)
    union = sums[..., 1] + sums[..., 2] - both
    each: NDArray[np.float64] = np.divide(both, union, out=np.full(both.shape, np.nan), where=union > 0)
    return each


def mean_iou(statistics: Any, counts: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over the classes that masks or answers have of their IoU, intersections and unions summed over all images
    (as PASCAL VOC has it); 0 where no pixel has a label."""
    sums = np.tensordot(counts, np.asarray(statistics), 1)  # (R, K, 3)
    each = ious(sums)
    there = ~np.isnan(each)
    means: NDArray[np.float64] = np.where(there, each, 0.0).sum(-1) / np.maximum(there.sum(-1), 1)
    return means


def constant(statistics: Any) -> float:
    """Mean IoU of answering the commonest class everywhere: its share of the pixels over the number of classes."""
    pixels = np.asarray(statistics)[..., 2].sum(0)
    return float(pixels.max() / max(pixels.sum(), 1) / max(np.count_nonzero(pixels), 1))


def by_class(statistics: Any) -> NDArray[np.float64]:
    """(K,)."""
    return ious(np.asarray(statistics).sum(0))


def apart(answer: Any, aims: Any, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of each pixel's logits, mean over the pixels (Hinton et al., arXiv 1503.02531)."""
    own, aim = (F.log_softmax(maps_of(each).float() / temperature, 1) for each in (answer, aims))
    pixels = own.numel() / own.shape[1]
    return temperature**2 * F.kl_div(own, aim, log_target=True, reduction="sum") / pixels


def demand(answer: Any, name: str, classes: int, shape: Sequence[int], options: Options) -> None:
    """UserError where the answer to two images (C, H, W) is no map of logits as large as they, or the options do not
    fit the classes."""
    logits, expected = maps_of(answer), (2, classes, *shape[1:])
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        kind = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        small = isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[1] == classes
        remedy = "end its forward() with F.interpolate(x, size=input.shape[2:])" if small else "choose another model"
        raise UserError(
            f"{name} answers two images with {kind}",
            f"a map of logits {expected} for task.name: segmentation, or a dict with it under `out`",
            f"{remedy}, e.g. demo:unet or torchvision:lraspp_mobilenet_v3_large",
        )
    if options.ignore_index not in (IGNORED, *range(classes)):
        raise UserError(
            f"task.ignore_index is {options.ignore_index}, and there are {classes} classes",
            f"{IGNORED}, or a class from 0 to {classes - 1}",
            "mend it",
        )
    if options.class_weights is not None and len(options.class_weights) != classes:
        raise UserError(
            f"task.class_weights has {len(options.class_weights)} weights, and there are {classes} classes",
            "one for each class",
            "mend it",
        )
