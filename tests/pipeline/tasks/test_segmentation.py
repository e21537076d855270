"""A class for each pixel: loss, mean IoU and refusals against torch, torchmetrics and small sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.config.task import task_of, task_section
from pipeline.tasks import Task
from pipeline.tasks.pictures import palette
from pipeline.tasks.segmentation import image_score, ious, mean_iou, overlaps
from runtime.errors import UserError
from runtime.measure.judged import Judging

LOGITS = torch.randn(6, 4, 5, 7, generator=torch.Generator().manual_seed(0))
MASKS = torch.randint(0, 4, (6, 5, 7), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
MASKS[:, 0] = 255


def task(**keys: Any) -> Task:
    return task_of(task_section(name="segmentation", **keys))


def test_cross_entropy_is_torch_s_over_the_labelled_pixels() -> None:
    labels = MASKS.long()
    assert task().loss(LOGITS, MASKS).item() == pytest.approx(F.cross_entropy(LOGITS, labels, ignore_index=255).item())
    weights = (1.0, 2.0, 0.0, 0.5)
    expected = F.cross_entropy(LOGITS, labels, torch.tensor(weights), ignore_index=255)
    assert task(class_weights=weights).loss(LOGITS, MASKS).item() == pytest.approx(expected.item())
    others = labels.masked_fill(labels == 2, 255)
    expected = F.cross_entropy(LOGITS, others, ignore_index=255)
    assert task(ignore_index=2).loss(LOGITS, MASKS).item() == pytest.approx(expected.item())
    nothing = LOGITS.clone().requires_grad_()
    empty = task(dice=1.0).loss(nothing, torch.full_like(MASKS, 255))
    torch.autograd.backward(empty)
    assert empty.item() == 1.0 and nothing.grad is not None and bool((nothing.grad == 0).all())


def test_dice_by_hand_and_the_auxiliary_head_counts_half() -> None:
    """Two pixels, classes 0 and 1, softmax 0.75 of the own class in both: Dice 2 * 0.75 / (1 + 1) for each class."""
    logit = float(np.log(3.0))
    logits = torch.tensor([[[[logit, 0.0]], [[0.0, logit]]]])
    masks = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    entropy = float(-np.log(0.75))
    assert task(dice=2.0).loss(logits, masks).item() == pytest.approx(entropy + 2 * 0.25)
    pair = {"out": logits, "aux": logits}
    assert task().loss(pair, masks).item() == pytest.approx(1.5 * entropy)


def test_mean_iou_is_that_of_torchmetrics() -> None:
    jaccard = pytest.importorskip("torchmetrics.classification").MulticlassJaccardIndex
    counted = overlaps(LOGITS, MASKS, 255).numpy()
    whole = mean_iou(counted, np.ones((1, 6), np.int64))[0]
    expected = jaccard(4, ignore_index=255)(LOGITS, MASKS.long())
    each = jaccard(4, ignore_index=255, average="none")(LOGITS, MASKS.long())
    assert whole == pytest.approx(float(expected), abs=1e-6)
    assert ious(counted.sum(0)).tolist() == pytest.approx(each.tolist(), abs=1e-6)
    twice = jaccard(4, ignore_index=255)(LOGITS[[0, 0, 3]], MASKS[[0, 0, 3]].long())
    assert mean_iou(counted, np.array([[2, 0, 0, 1, 0, 0]]))[0] == pytest.approx(float(twice), abs=1e-6)


def test_classes_that_nobody_has_do_not_count_and_no_number_is_wrong() -> None:
    """3 pixels of class 0, one of them answered 1: IoU 2/3 and 0; the classes 2 and 3 are neither there nor said."""
    logits = torch.zeros(1, 4, 1, 4)
    logits[0, 0, 0, :2] = 1.0
    logits[0, 1, 0, 2] = 1.0
    masks = torch.tensor([[[0, 0, 0, 255]]], dtype=torch.uint8)
    counted = overlaps(logits, masks, 255)
    assert counted.tolist() == [[[2, 2, 3], [0, 1, 0], [0, 0, 0], [0, 0, 0]]]
    assert image_score(counted).tolist() == [pytest.approx(1 / 3)]
    assert np.isnan(ious(counted[0].numpy())).tolist() == [False, False, True, True]
    logits[0, 2, 0, 0] = torch.nan
    assert overlaps(logits, masks, 255)[0, 0].tolist() == [1, 1, 3]
    assert image_score(overlaps(logits, torch.full_like(masks, 255), 255)).tolist() == [1.0]


def test_the_best_constant_answer_is_known() -> None:
    """Half of 4 labelled pixels are class 1, a quarter each 0 and 2: IoU 1/2 of one in three classes."""
    masks = torch.tensor([[[1, 1, 0, 2, 255]]], dtype=torch.uint8)
    logits = torch.zeros(1, 4, 1, 5)
    logits[:, 1] = 1.0
    counted = overlaps(logits, masks, 255).numpy()
    pooled = task().pooled
    assert pooled is not None and pooled.constant is not None
    assert pooled.constant(counted) == mean_iou(counted, np.ones((1, 1), np.int64))[0] == pytest.approx(1 / 6)


def test_two_networks_are_compared_by_a_bootstrap_of_the_pooled_metric() -> None:
    """The second is wrong in the largest image alone: the mean of the images' scores would fall far less."""
    masks = np.zeros((40, 4, 4), np.uint8)
    masks[:, :, 2:] = 1
    right = np.stack([masks == 0, masks == 1], 1).astype(np.float32)
    wrong = right.copy()
    wrong[:10, :, :, 0] = wrong[:10, ::-1, :, 0]
    judge = task().judge()
    results = []
    for outputs in (right, wrong):
        judging = Judging(judge)
        judging.add(outputs[:17], masks[:17])
        judging.add(outputs[17:], masks[17:])
        results.append(judging.judged())
    # 10 images of 4 wrong pixels of class 0: 280 of 320 in both, and 40 more of class 1
    expected = (280 / 320 + 320 / 360) / 2
    assert results[0].value == 1.0 and results[1].value == pytest.approx(expected)
    paired = results[1].against(results[0])
    assert paired.difference_pp == pytest.approx(100 * (expected - 1))
    assert (paired.only_first, paired.only_second, paired.n) == (10, 0, 40)
    assert paired.ci95_pp[0] < paired.difference_pp < paired.ci95_pp[1] < 0 and paired.p_value == 0
    low, high = results[1].interval or (0, 0)
    assert 0.7 < low < expected < high < 1 and "bootstrap" in paired.method


@pytest.mark.parametrize(
    ("keys", "answer", "message"),
    [
        ({}, torch.zeros(2, 4), r"answers two images with shape \(2, 4\); a map of logits \(2, 4, 8, 8\)"),
        ({}, torch.zeros(2, 4, 4, 4), r"shape \(2, 4, 4, 4\).*F.interpolate"),
        ({}, {"logits": torch.zeros(2, 4, 8, 8)}, "answers two images with dict"),
        ({"ignore_index": 9}, torch.zeros(2, 4, 8, 8), "task.ignore_index is 9, and there are 4 classes"),
        ({"class_weights": (1.0, 2.0)}, torch.zeros(2, 4, 8, 8), "task.class_weights has 2 weights"),
    ],
)
def test_networks_that_answer_otherwise_are_refused(keys: dict[str, Any], answer: Any, message: str) -> None:
    demand = task(**keys).demand
    assert demand is not None
    with pytest.raises(UserError, match=message) as caught:
        demand(answer, "net", 4, (3, 8, 8))
    assert "\n" not in str(caught.value)
    if not keys:
        demand({"out": torch.zeros(2, 4, 8, 8)}, "net", 4, (3, 8, 8))


def test_masks_have_the_colours_of_pascal_voc() -> None:
    colours = palette(256).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert (colours[15], colours[20], colours[255]) == ([192, 128, 128], [0, 64, 128], [224, 224, 192])
