"""The losses of RetinaNet, FCOS and SSD: torchvision's own functions, given what its networks would give them; and how
far a detector's answer is from a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import _utils, fcos, retinanet, ssd
from torchvision.ops import box_iou

from pipeline.tasks.boxes.codes import SSD_WEIGHTS

CENTRE_RADIUS = 1.5
Targets = list[dict[str, Tensor]]


def loss(answer: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Scalar, of an answer to B images and boxes (B, M, 6) as shares of the image: the classes' and the boxes' loss
    (and FCOS' of the centreness), with equal weight as in torchvision. Crowds are no targets."""
    extent, anchors = answer["extent"], answer["anchors"]
    each = [_boxes(rows, extent) for rows in targets]
    outputs = {name: value.float() for name, value in answer.items()}
    repeated = [anchors] * len(each)
    if "bbox_ctrness" in answer:
        levels = torch.unique_consecutive(anchors[:, 2] - anchors[:, 0], return_counts=True)[1].tolist()
        terms = fcos.FCOS.compute_loss(_fcos(), each, outputs, repeated, levels)
    elif "background_logits" in answer:
        outputs["cls_logits"] = torch.cat([outputs["background_logits"], outputs["cls_logits"]], -1)
        each = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in each]
        terms = ssd.SSD.compute_loss(_ssd(), each, outputs, repeated, [_matched(one, anchors) for one in each])
    else:
        terms = retinanet.RetinaNet.compute_loss(_retinanet(), each, outputs, repeated)
    return torch.stack(list(terms.values())).sum()


def _boxes(rows: Tensor, extent: Tensor) -> dict[str, Tensor]:
    """Boxes in pixels and labels of an image (M, 6)."""
    rows = rows[(rows[:, 4] >= 0) & (rows[:, 5] == 0)]
    return {"boxes": rows[:, :4] * extent, "labels": rows[:, 4].long()}


def _matched(target: dict[str, Tensor], anchors: Tensor) -> Tensor:
    """int64 (A,): which box each anchor is for, -1 where it is for none."""
    if not len(target["boxes"]):
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    matched: Tensor = _utils.SSDMatcher(0.5)(box_iou(target["boxes"], anchors))
    return matched


# The networks that torchvision's losses are methods of, without weights.


@cache
def _retinanet() -> Any:
    matcher = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return SimpleNamespace(proposal_matcher=matcher, head=retinanet.RetinaNetHead(1, 1, 1))


@cache
def _fcos() -> Any:
    return SimpleNamespace(center_sampling_radius=CENTRE_RADIUS, head=fcos.FCOSHead(1, 1, 1, num_convs=0))


@cache
def _ssd() -> Any:
    return SimpleNamespace(box_coder=_utils.BoxCoder(SSD_WEIGHTS), neg_to_pos_ratio=3)


def distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], temperature: float) -> Tensor:
    """T^2 times the divergence of the classes, and the L1 distance of the boxes, each weighed by how sure the teacher
    is of an anchor and divided by the sum of that: almost all anchors lie on the background, where both agree."""
    logits, aims = (one["cls_logits"].float() for one in (student, teacher))
    background = "background_logits" in teacher
    sure = _probabilities(teacher).amax(-1)
    total = sure.sum().clamp(min=1.0)
    if background:
        own, aim = (
            (torch.cat([one["background_logits"].float(), classes], -1) / temperature).log_softmax(-1)
            for one, classes in ((student, logits), (teacher, aims))
        )
        apart = F.kl_div(own, aim, log_target=True, reduction="none").sum(-1)
    else:
        apart = _bernoulli(logits / temperature, aims / temperature).sum(-1)
    codes = (student["bbox_regression"].float() - teacher["bbox_regression"].float()).abs().mean(-1)
    terms = temperature**2 * apart + codes
    if "bbox_ctrness" in teacher:
        terms = terms + _bernoulli(student["bbox_ctrness"].float(), teacher["bbox_ctrness"].float())[..., 0]
    return (sure * terms).sum() / total


def _probabilities(answer: Mapping[str, Tensor]) -> Tensor:
    logits = answer["cls_logits"].float()
    if "background_logits" not in answer:
        return logits.sigmoid()
    return torch.cat([answer["background_logits"].float(), logits], -1).softmax(-1)[..., 1:]


def _bernoulli(own: Tensor, aim: Tensor) -> Tensor:
    """KL(teacher || student) of probabilities that are given as logits, each by itself."""
    target = aim.sigmoid()
    return F.binary_cross_entropy_with_logits(own, target, reduction="none") - F.binary_cross_entropy_with_logits(
        aim, target, reduction="none"
    )
