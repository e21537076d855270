"""Boxes of objects and their classes, by detectors of one stage: the loss of RetinaNet, FCOS or SSD, and mean average
precision as COCO defines it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.section import Fraction, Positive, Section
from pipeline.tasks import Pooled, Task
from pipeline.tasks.boxes.codes import OUTPUTS, decoded, demand_detector
from pipeline.tasks.boxes.drawing import SHOWS, drawn
from pipeline.tasks.boxes.losses import distance, loss
from pipeline.tasks.boxes.precision import by_class, mean_precision, statistics
from pipeline.tasks.boxes.suppression import Suppression
from runtime.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.backends import Array


METRICS = {"mAP50-95": slice(None), "mAP50": slice(0, 1)}
"""Which of the overlaps 0.5, 0.55, ... 0.95 each takes the mean over."""


class Options(Section):
    metric: Literal["mAP50-95", "mAP50"] = Field(
        default="mAP50-95",
        description="What networks are judged by: the mean average precision at overlaps of 0.5 to 0.95 as COCO has "
        "it, or at 0.5 alone.",
    )
    score_threshold: Fraction = Field(default=0.05, description="Score below which a box is no detection.")
    iou_threshold: Fraction = Field(
        default=0.5, description="NMS: a box goes that overlaps a better one of its class by more than this."
    )
    candidates: Positive = Field(default=1000, description="Best boxes of an image that NMS looks at.")
    max_detections: Annotated[int, Field(ge=1, le=100)] = Field(
        default=100, description="Most detections of an image; COCO counts 100."
    )
    nms_in_graph: bool = Field(
        default=False,
        description="Write each graph of stage 55 once more with NMS inside (dense.fp32.nms.onnx and so on): num_dets, "
        "det_boxes, det_scores, det_classes. The others give all boxes and scores.",
    )
    confident: Fraction = Field(
        default=0.3, description="Score from which a detection counts for the order of the report's worst images."
    )


def detection(options: Options) -> Task:
    """Of the answers of `pipeline/models/detection`, and boxes (B, M, 6) as shares of the image."""
    _demand_torchmetrics()
    keep = Suppression(options.score_threshold, options.iou_threshold, options.candidates, options.max_detections)
    thresholds = METRICS[options.metric]

    def of_images(outputs: Mapping[str, Tensor], targets: Tensor) -> list[Tensor]:
        return [statistics(one, target) for one, target in zip(keep.of_batch(outputs), targets, strict=True)]

    def score(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        each = [f_score(one, options.confident) for one in of_images(outputs, targets)]
        return torch.tensor(each, dtype=torch.float64, device=targets.device)

    def draw(image: Array, target: Array, outputs: Sequence[Any], names: Sequence[str]) -> Array:
        return drawn(image, target, outputs, names, keep)

    return Task(
        options.metric,
        loss,
        score,
        pooled=Pooled(
            of_images,
            partial(mean_precision, thresholds=thresholds),
            by_class=partial(by_class, thresholds=thresholds),
            beside={
                name: partial(mean_precision, thresholds=at) for name, at in METRICS.items() if name != options.metric
            },
        ),
        targets="boxes",
        outputs=OUTPUTS,
        named=decoded,
        demand=demand_detector,
        distance=distance,
        draw=draw,
        completed=partial(_with_nms, keep) if options.nms_in_graph else None,
        completion="nms" if options.nms_in_graph else "",
        drawn=SHOWS,
    )


def f_score(rows: Tensor, confident: float) -> float:
    """Of the rows of an image (`precision.statistics`): how many of its boxes are hit at an overlap of 0.5 by a
    detection of at least that score, against how many such detections there are; 1 where there is nothing."""
    from pipeline.tasks.boxes.precision import CROWD, HIT, IGNORED, SCORE

    sure = rows[(rows[:, SCORE] >= max(confident, 1e-9)) & (rows[:, IGNORED][:, 0] == 0)]
    boxes = int(((rows[:, SCORE] < 0) & (rows[:, CROWD] == 0)).sum())
    if not len(sure) + boxes:
        return 1.0
    return 2 * float(sure[:, HIT][:, 0].sum()) / (len(sure) + boxes)


def _with_nms(keep: Suppression, source: Path, path: Path, images: Array) -> Path:
    from export.onnx.detections import Nms, with_nms

    def reference(boxes: Array, scores: Array) -> list[Array]:
        outputs = {"boxes": torch.from_numpy(boxes), "scores": torch.from_numpy(scores)}
        return [rows.numpy() for rows in keep.of_batch(outputs)]

    nms = Nms(keep.score_threshold, keep.iou_threshold, keep.max_detections)
    return with_nms(source, path, nms, images, reference)


def _demand_torchmetrics() -> None:
    """The figures of each class are torchmetrics'."""
    for name in ("torchmetrics", "pycocotools"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"task.name is detection and {name} is not installed",
                "the extra detection",
                "pip install 'demport[detection]'",
            )
