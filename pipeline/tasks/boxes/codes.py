"""From a detector's answer (`pipeline/models/detection`) to boxes and scores, by torchvision's coders; traced into the
graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from runtime.errors import UserError

RETINANET_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
OUTPUTS = ("boxes", "scores")
PARTS = ("cls_logits", "bbox_regression", "anchors", "extent")


def decoded(answer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """boxes (N, A, 4): x1, y1, x2, y2 as shares of the image's width and height, cut at its borders; scores (N, A, K):
    the probability of each class."""
    logits = answer["cls_logits"]
    if "bbox_ctrness" in answer:
        scores = torch.sqrt(torch.sigmoid(logits) * torch.sigmoid(answer["bbox_ctrness"]))
    elif "background_logits" in answer:
        scores = torch.cat([answer["background_logits"], logits], -1).softmax(-1)[..., 1:]
    else:
        scores = torch.sigmoid(logits)
    return {"boxes": (corners_of(answer) / answer["extent"]).clamp(0, 1), "scores": scores}


def corners_of(answer: Mapping[str, Tensor]) -> Tensor:
    """(N, A, 4): x1, y1, x2, y2 in pixels."""
    codes, anchors = answer["bbox_regression"], answer["anchors"]
    if "bbox_ctrness" in answer:
        corners: Tensor = BoxLinearCoder(normalize_by_size=True).decode(codes, anchors)
        return corners
    coder = BoxCoder(SSD_WEIGHTS if "background_logits" in answer else RETINANET_WEIGHTS)
    return _by_sides(codes, anchors, coder)


def _by_sides(codes: Tensor, anchors: Tensor, coder: BoxCoder) -> Tensor:
    """`BoxCoder.decode_single` of a batch: torchvision's takes one image, and its batch is not to be traced."""
    sides = anchors[:, 2:] - anchors[:, :2]
    middles = anchors[:, :2] + 0.5 * sides
    across, down, wide, high = coder.weights
    middle = codes[..., :2] / codes.new_tensor([across, down]) * sides + middles
    growth = (codes[..., 2:] / codes.new_tensor([wide, high])).clamp(max=coder.bbox_xform_clip)
    half = 0.5 * growth.exp() * sides
    return torch.cat([middle - half, middle + half], -1)


def demand_detector(answer: Any, name: str, num_classes: int, shape: tuple[int, ...]) -> None:
    """UserError where the answer to two images is not that of a detector of so many classes."""
    parts = dict(answer) if isinstance(answer, Mapping) else {}
    missing = [part for part in PARTS if not isinstance(parts.get(part), Tensor)]
    if missing:
        raise UserError(
            f"{name} answers two images with {', '.join(parts) or type(answer).__name__}",
            f"a dict with {', '.join(PARTS)} (and bbox_ctrness or background_logits)",
            "choose a detector, e.g. demo:detector, or see docs/tasks.md",
        )
    anchors = len(parts["anchors"])
    expected = {
        "cls_logits": (2, anchors, num_classes),
        "bbox_regression": (2, anchors, 4),
        "anchors": (anchors, 4),
        "extent": (4,),
        "bbox_ctrness": (2, anchors, 1),
        "background_logits": (2, anchors, 1),
    }
    for part, value in parts.items():
        if part in expected and tuple(value.shape) != expected[part]:
            raise UserError(
                f"{name} answers two images with {part} {tuple(value.shape)}",
                f"{expected[part]}, of {num_classes} classes",
                "mend the network, or give it as many classes as the data have (model.args)",
            )
    if [float(side) for side in parts["extent"]] != [float(shape[2]), float(shape[1])] * 2:
        raise UserError(
            f"{name} is for images of {parts['extent'].tolist()}", f"{shape[2]}, {shape[1]} pixels", "mend its extent"
        )
