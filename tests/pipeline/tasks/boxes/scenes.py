"""Random detections and boxes of a truth, crowds among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLASSES = 3


def scene(seed: int, crowds: bool = True, ties: bool = True) -> tuple[Tensor, Tensor]:
    """Detections (D, 6) and targets (M, 6) of an image: some detections lie near a box, some anywhere; with `ties`
    often several have one score."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def boxes(count: int) -> Tensor:
        corner = random(count, 2) * 0.7
        return torch.cat([corner, corner + 0.05 + random(count, 2) * 0.25], 1)

    count = int(torch.randint(0, 5, (1,), generator=generator))
    truth = boxes(count)
    label = torch.randint(0, CLASSES, (count,), generator=generator).float()
    crowd = (random(count) < 0.25).float() * crowds
    near = (truth.repeat(3, 1) + 0.03 * (random(3 * count, 4) - 0.5)).clamp(0, 1)
    near_label = torch.where(random(3 * count) < 0.8, label.repeat(3), 0.0)
    others = int(torch.randint(0, 6, (1,), generator=generator))
    apart = torch.randint(0, CLASSES, (others,), generator=generator).float()
    score = random(3 * count + others)
    score = ((score * 20).round() / 20 if ties else score) * 0.9 + 0.05
    found = torch.cat([torch.cat([near, boxes(others)]), score[:, None], torch.cat([near_label, apart])[:, None]], 1)
    order = torch.argsort(found[:, 4], descending=True, stable=True)
    targets = torch.cat([truth, label[:, None], crowd[:, None]], 1)
    padding = torch.tensor([[0.0, 0, 0, 0, -1, 0]]).repeat(5 - count, 1)
    return found[order], torch.cat([targets, padding])


def for_torchmetrics(detections: Tensor, targets: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    truth = targets[targets[:, 4] >= 0]
    predicted = {"boxes": detections[:, :4], "scores": detections[:, 4], "labels": detections[:, 5].long()}
    return predicted, {"boxes": truth[:, :4], "labels": truth[:, 4].long(), "iscrowd": truth[:, 5].long()}
