"""Average precision as COCO defines it, from statistics of each image, so that images can be drawn again and again.

Detections are matched to boxes image by image; only the curve of precision over recall needs all images. The rules are
those of pycocotools' COCOeval, whose figures these are to the last digit; a test holds both against each other.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from runtime.backends import Array

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100
"""Detections of one class in an image that count."""
CLASS, SCORE, CORNERS, CROWD = 0, 1, slice(2, 6), 6
HIT, IGNORED = slice(7, 17), slice(17, 27)
COLUMNS = 27
NO_SCORE = -1.0
"""In the column of the score: the row is a box of the truth."""
_EPS = float(np.spacing(1.0))
Flags: TypeAlias = NDArray[np.bool_]


def statistics(detections: Tensor, targets: Tensor) -> Tensor:
    """detections (D, 6): x1, y1, x2, y2, score, class; targets (M, 6): x1, y1, x2, y2, class, crowd, or -1 as class ->
    float32 (D + M', 27), a row for each box: class, score, corners, crowd, and for detections at each of the 10
    thresholds of the overlap whether it is a hit, and whether it does not count."""
    truth = targets[targets[:, 4] >= 0]
    rows = torch.zeros(len(detections) + len(truth), COLUMNS)
    rows[: len(detections), [CLASS, SCORE]] = detections[:, [5, 4]].cpu()
    rows[: len(detections), CORNERS] = detections[:, :4].cpu()
    rows[len(detections) :, CLASS] = truth[:, 4].cpu()
    rows[len(detections) :, SCORE] = NO_SCORE
    rows[len(detections) :, CORNERS] = truth[:, :4].cpu()
    rows[len(detections) :, CROWD] = truth[:, 5].cpu()
    keep = torch.ones(len(rows), dtype=torch.bool)
    for label in torch.unique(detections[:, 5]).tolist():
        mine = torch.nonzero(detections[:, 5] == label).flatten()
        mine = mine[torch.argsort(detections[mine, 4], descending=True, stable=True)]
        keep[mine[MOST:].cpu()] = False
        mine = mine[:MOST]
        own = truth[truth[:, 4] == label]
        hit, ignored = _matched(detections[mine, :4], own[:, :4], (own[:, 5] > 0).cpu().numpy())
        rows[mine.cpu(), HIT] = torch.from_numpy(hit.astype(np.float32))
        rows[mine.cpu(), IGNORED] = torch.from_numpy(ignored.astype(np.float32))
    return rows[keep]


def _matched(boxes: Tensor, truth: Tensor, crowd: Flags) -> tuple[Flags, Flags]:
    """Of boxes (D, 4) from the best on, at each threshold (D, 10): is it a hit, and is it one of a crowd."""
    hit = np.zeros((len(boxes), len(THRESHOLDS)), bool)
    ignored = np.zeros_like(hit)
    if not len(truth):
        return hit, ignored
    overlap = box_iou(boxes.double(), truth.double()).cpu().numpy()
    if crowd.any():  # of a crowd it is enough to lie inside
        overlap[:, crowd] = _inside(boxes.double(), truth.double()).cpu().numpy()[:, crowd]
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((len(THRESHOLDS), len(truth)), bool)
    for index, row in enumerate(overlap):
        for group in (~crowd, crowd):  # a crowd is taken only where no single box is
            fits = free & group & (row >= least)
            best = np.where(fits, row, -1.0)
            last = len(truth) - 1 - best[:, ::-1].argmax(axis=1)  # of equal ones the last, as COCOeval has it
            taken = fits.any(axis=1) & ~hit[index] & ~ignored[index]
            if group is crowd:
                ignored[index] |= taken
            else:
                hit[index] |= taken
                free[taken, last[taken]] = False
    return hit, ignored


def _inside(boxes: Tensor, truth: Tensor) -> Tensor:
    """(D, M): how much of each box lies inside."""
    corner, other = torch.max(boxes[:, None, :2], truth[None, :, :2]), torch.min(boxes[:, None, 2:], truth[None, :, 2:])
    sides = (other - corner).clamp(min=0)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return sides.prod(2) / area[:, None]


class Curves:
    """Rows of all images, class by class, from the best detection on."""

    def __init__(self, images: Any) -> None:
        self.images = len(images)
        rows = np.concatenate([np.asarray(one, np.float32).reshape(-1, COLUMNS) for one in images])
        image = np.repeat(np.arange(len(images)), [len(one) for one in images])
        self._truth = (rows[:, SCORE] == NO_SCORE) & (rows[:, CROWD] == 0)
        self._rows, self._image = rows, image
        self.classes = np.unique(rows[self._truth, CLASS]).astype(int)

    def average_precision(self, label: int, counts: Array, thresholds: slice) -> Array:
        """(R,): the mean over `thresholds` of the average precision of a class, NaN where no image of a resample has
        it; `counts` (R, N)."""
        of_class = self._rows[:, CLASS] == label
        boxes = np.bincount(self._image[of_class & self._truth], minlength=self.images)
        positives = (counts @ boxes).astype(np.float64)
        mine = np.flatnonzero(of_class & (self._rows[:, SCORE] != NO_SCORE))
        mine = mine[np.argsort(-self._rows[mine, SCORE], kind="mergesort")]
        weight = counts[:, self._image[mine]]
        hits, ignored = (self._rows[mine][:, columns][:, thresholds] > 0 for columns in (HIT, IGNORED))
        with np.errstate(invalid="ignore", divide="ignore"):
            each = [
                _area(weight * hit, weight * (~hit & ~skip), positives)
                for hit, skip in zip(hits.T, ignored.T, strict=True)
            ]
        return np.where(positives > 0, np.mean(each, axis=0), np.nan)


def _area(hits: Array, misses: Array, positives: Array) -> Array:
    """(R,): mean of the precision at 101 recalls, of how often each detection (R, D) is a hit or a miss."""
    if not hits.shape[1]:
        return np.zeros(len(hits))
    right, wrong = hits.cumsum(axis=1), misses.cumsum(axis=1)
    recall = right / positives[:, None]
    precision = right / (right + wrong + _EPS)
    best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)
    new = np.diff(reached, axis=1, prepend=0)
    area: Array = (best_after * new).sum(axis=1) / len(RECALLS)
    return area


def mean_precision(images: Any, counts: Array, thresholds: slice = slice(None)) -> Array:
    """(R,): the mean over the classes that a resample has boxes of; 0 where it has none."""
    curves = Curves(images)
    if not len(curves.classes):
        return np.zeros(len(counts))
    each = np.stack([curves.average_precision(int(label), counts, thresholds) for label in curves.classes])
    there = ~np.isnan(each)
    mean: Array = np.where(there, each, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return mean


def by_class(images: Any, thresholds: slice = slice(None)) -> Array:
    """(K,), by torchmetrics: of each class up to the last that is there; NaN where no image has it."""
    from torchmetrics.detection import MeanAveragePrecision

    # torchmetrics rounds COCO's steps to float32 by itself, and a recall that lies on one falls to its other side
    steps = {"iou_thresholds": THRESHOLDS[thresholds].tolist(), "rec_thresholds": RECALLS.tolist()}
    metric = MeanAveragePrecision(class_metrics=True, **steps)
    for rows in images:
        every = torch.from_numpy(np.asarray(rows, np.float32).reshape(-1, COLUMNS))
        truth = every[:, SCORE] == NO_SCORE
        predicted, real = every[~truth], every[truth]
        metric.update(
            [{"boxes": predicted[:, CORNERS], "scores": predicted[:, SCORE], "labels": predicted[:, CLASS].long()}],
            [{"boxes": real[:, CORNERS], "labels": real[:, CLASS].long(), "iscrowd": real[:, CROWD].long()}],
        )
    result = metric.compute()
    figures = np.full(1 + max((int(np.max(rows[:, CLASS])) for rows in images if len(rows)), default=-1), np.nan)
    if len(figures):
        figures[np.atleast_1d(result["classes"].numpy())] = np.atleast_1d(result["map_per_class"].numpy())
    return np.where(figures < 0, np.nan, figures)
