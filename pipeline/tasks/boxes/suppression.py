"""Detections of an image: the best of its boxes, without those that lie over a better one of the same class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms


@dataclass(frozen=True)
class Suppression:
    """What is kept of the boxes and scores of an image; the graph with NMS does the same."""

    score_threshold: float
    """Of a class, below which a box is no detection of it."""
    iou_threshold: float
    """A box that overlaps a better one of its class by more goes."""
    candidates: int
    """Best pairs of box and class that NMS looks at."""
    max_detections: int

    def of_image(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """boxes (A, 4), scores (A, K) -> float (D, 6): x1, y1, x2, y2, score, class, the best first."""
        values, order = scores.flatten().topk(min(self.candidates, scores.numel()))
        order = order[values > self.score_threshold]
        values = values[values > self.score_threshold]
        which, label = order // scores.shape[1], order % scores.shape[1]
        keep = batched_nms(boxes[which], values, label, self.iou_threshold)[: self.max_detections]
        return torch.cat([boxes[which][keep], values[keep, None], label[keep, None].to(boxes.dtype)], 1)

    def of_batch(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """`of_image` for each; an image with an output that is no number has no detections."""
        pairs = zip(outputs["boxes"].float(), outputs["scores"].float(), strict=True)
        return [
            self.of_image(boxes, scores)
            if bool(torch.isfinite(scores).all()) and bool(torch.isfinite(boxes).all())
            else boxes.new_zeros((0, 6))
            for boxes, scores in pairs
        ]
