"""Answers of torchvision's detectors without what surrounds them: the same losses, boxes and scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos, retinanet, ssd
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

from pipeline.models.detection.adapters import TorchvisionDetector
from pipeline.tasks.boxes.codes import decoded, demand_detector
from pipeline.tasks.boxes.losses import distance, loss
from pipeline.tasks.boxes.suppression import Suppression
from runtime.errors import UserError

SIDE, CLASSES = 64, 3
KINDS = ("retinanet", "fcos", "ssd")


class Backbone(nn.Module):
    """Two levels, at strides of 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 32
        self.first, self.second = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 32, 2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        return {"0": first, "1": self.second(first)}


def model_of(kind: str) -> Any:
    """torchvision's detector around a small backbone, which does not resize or normalise."""
    torch.manual_seed(3)
    limits: dict[str, Any] = {
        "topk_candidates": 10_000, "detections_per_img": 100, "nms_thresh": 0.5, "score_thresh": 0.05,
        "image_mean": [0.0] * 3, "image_std": [1.0] * 3,
    }  # fmt: skip
    if kind == "ssd":
        boxes = DefaultBoxGenerator([[2], [2, 3]], scales=[0.2, 0.4, 0.6])
        head = ssd.SSDHead([32, 32], [4, 6], CLASSES + 1)
        return ssd.SSD(Backbone(), boxes, (SIDE, SIDE), CLASSES + 1, head=head, **limits)
    limits |= {"min_size": SIDE, "max_size": SIDE}
    if kind == "fcos":
        squares = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
        return fcos.FCOS(Backbone(), CLASSES, anchor_generator=squares, **limits)
    anchors = AnchorGenerator(((12,), (24,)), ((0.5, 1.0, 2.0),) * 2)
    return retinanet.RetinaNet(Backbone(), CLASSES, anchor_generator=anchors, **limits)


def lively(model: Any) -> Any:
    """Scores that are not all the prior's."""
    for name, parameter in model.head.named_parameters():
        if "cls_logits" in name or "classification_head.module_list" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def images_and_targets() -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Images, boxes as ours are, with a crowd and an image without boxes, and as torchvision takes them."""
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(3, 3, SIDE, SIDE, generator=generator)
    targets = torch.tensor([
        [[4.0, 6, 30, 40, 0, 0], [20, 20, 44, 44, 2, 0], [0, 0, 64, 64, 1, 1]],
        [[0, 0, 0, 0, -1, 0]] * 3,
        [[40, 10, 60, 22, 1, 0], [0, 0, 0, 0, -1, 0], [0, 0, 0, 0, -1, 0]],
    ])  # fmt: skip
    theirs = [rows[(rows[:, 4] >= 0) & (rows[:, 5] == 0)] for rows in targets]
    targets[..., :4] /= SIDE
    return images, targets, [{"boxes": rows[:, :4], "labels": rows[:, 4].long()} for rows in theirs]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, TorchvisionDetector]]:
    model = lively(model_of(request.param))
    yield model, TorchvisionDetector(model, (3, SIDE, SIDE))


def test_the_loss_is_torchvisions(pair: tuple[Any, TorchvisionDetector]) -> None:
    model, ours = pair
    images, targets, theirs = images_and_targets()
    if isinstance(model, ssd.SSD):
        theirs = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in theirs]
    expected = sum(model.train()(list(images), theirs).values())
    value = loss(ours.train()(images), targets)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.autograd.backward(value)
    gradients = [p.grad for p in ours.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


@torch.no_grad()
def test_detections_are_torchvisions(pair: tuple[Any, TorchvisionDetector]) -> None:
    model, ours = pair
    images, _, _ = images_and_targets()
    expected = model.eval()(list(images))
    outputs = decoded(ours.eval()(images))
    background = int(isinstance(model, ssd.SSD))
    for rows, theirs in zip(Suppression(0.05, 0.5, 30_000, 100).of_batch(outputs), expected, strict=True):
        assert len(rows) == len(theirs["scores"]) > 5
        assert rows[:, 4].tolist() == pytest.approx(theirs["scores"].tolist(), abs=1e-6)
        # Detections of one score, to the last bit but one, stand in either order: each has its own counterpart.
        own = torch.cat([rows[:, :4] * SIDE, SIDE * (rows[:, 5:6] + background), SIDE * rows[:, 4:5]], 1)
        columns = [theirs["boxes"], SIDE * theirs["labels"][:, None], SIDE * theirs["scores"][:, None]]
        apart = (own[:, None] - torch.cat(columns, 1)).abs().amax(2)
        assert bool((apart.amin(1) < 1e-3).all())
        assert sorted(apart.argmin(1).tolist()) == list(range(len(rows)))


def test_a_network_is_no_further_from_itself_than_from_another(pair: tuple[Any, TorchvisionDetector]) -> None:
    _, ours = pair
    images, _, _ = images_and_targets()
    answer = ours.eval()(images)
    with torch.no_grad():
        teacher = {name: value + 0.1 * (value.ndim == 3) for name, value in ours(images).items()}
    assert float(distance(answer, answer, 2.0).detach()) == pytest.approx(0.0, abs=1e-6)
    apart = distance(answer, teacher, 2.0)
    assert float(apart.detach()) > 0.01
    torch.autograd.backward(apart)
    assert all(p.grad is not None for p in ours.parameters())


def test_a_detector_of_other_classes_or_sizes_is_one_line(pair: tuple[Any, TorchvisionDetector]) -> None:
    _, ours = pair
    answer = ours.eval()(torch.zeros(2, 3, SIDE, SIDE))
    demand_detector(answer, "mine", CLASSES, (3, SIDE, SIDE))
    with pytest.raises(UserError, match=r"cls_logits \(2, \d+, 3\)"):
        demand_detector(answer, "mine", CLASSES + 1, (3, SIDE, SIDE))
    with pytest.raises(UserError, match="is for images of"):
        demand_detector(answer, "mine", CLASSES, (3, SIDE, 2 * SIDE))
    with pytest.raises(UserError, match="answers two images with Tensor"):
        demand_detector(torch.zeros(2, 3), "mine", CLASSES, (3, SIDE, SIDE))
    with pytest.raises(UserError, match="a dict with cls_logits, bbox_regression, anchors, extent"):
        demand_detector({"boxes": torch.zeros(2, 3)}, "mine", CLASSES, (3, SIDE, SIDE))


def test_a_score_that_is_no_number_detects_nothing() -> None:
    boxes = torch.tensor([[[0.1, 0.1, 0.3, 0.3]]]).repeat(2, 1, 1)
    scores = torch.tensor([[[float("nan")]], [[0.9]]])
    rows = Suppression(0.05, 0.5, 10, 10).of_batch({"boxes": boxes, "scores": scores})
    assert [len(one) for one in rows] == [0, 1]
    assert rows[1][0].tolist() == pytest.approx([0.1, 0.1, 0.3, 0.3, 0.9, 0])
