"""The task `detection`: what it is judged by, draws and refuses."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline import config
from pipeline.check.accuracy import beside
from pipeline.config.task import task_of, task_section
from pipeline.data import load
from pipeline.models import build_for
from pipeline.models.soundness import demand_task
from pipeline.stages.train import demand_targets
from runtime.errors import UserError
from runtime.measure.accuracy import Accuracy

BOX = [0.25, 0.25, 0.75, 0.75]


def outputs_of(*scores: float) -> dict[str, torch.Tensor]:
    """An image a score: one box, right, of class 1 of two."""
    count = len(scores)
    each = torch.tensor([[[0.0, score]] for score in scores])
    return {"boxes": torch.tensor([BOX]).repeat(count, 1, 1), "scores": each}


TARGETS = torch.tensor([[[*BOX, 1, 0], [0, 0, 0, 0, -1, 0]]])


def test_a_hit_scores_one_and_a_miss_nothing() -> None:
    task = task_of(task_section(name="detection"))
    targets = TARGETS.repeat(3, 1, 1)
    assert task.score(outputs_of(0.9, 0.2, float("nan")), targets).tolist() == [1.0, 0.0, 0.0]  # 0.2 is not confident
    assert task.pooled is not None
    rows = [one.numpy() for one in task.pooled.statistics(outputs_of(0.9, 0.2, 0.01), targets)]
    assert task.pooled.metric(rows, np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1]])) == pytest.approx([67 / 101, 1, 0])


def test_the_metric_is_chosen() -> None:
    shifted = outputs_of(0.9)
    shifted["boxes"] = torch.tensor([[[0.25, 0.25, 0.75, 0.65]]])  # an overlap of 0.8
    whole = np.ones((1, 1), np.int64)
    values = {}
    expected = {"mAP50": 1.0, "mAP50-95": 0.6}  # 0.5 to 0.75: at 0.8 by a hair not
    for name, other in (("mAP50", "mAP50-95"), ("mAP50-95", "mAP50")):
        task = task_of(task_section(name="detection", metric=name))
        assert task.metric == name and task.pooled is not None
        rows = [one.numpy() for one in task.pooled.statistics(shifted, TARGETS)]
        values[name] = float(task.pooled.metric(rows, whole)[0])
        nothing = np.zeros(1)
        through_torch = Accuracy(values[name], 1, nothing, nothing, nothing, rows, task.pooled.metric)
        assert beside({"torch": through_torch, "onnx": "it did not load"}, task) == {
            other: {"torch": pytest.approx(expected[other])}
        }
    assert values == pytest.approx(expected)


def test_a_picture_shows_truth_before_and_after() -> None:
    task = task_of(task_section(name="detection"))
    assert task.draw is not None
    pair = [{name: value.numpy() for name, value in outputs_of(score).items()} for score in (0.9, 0.1)]
    picture = task.draw(np.zeros((64, 48, 3), np.uint8), TARGETS[0].numpy(), pair, ("cat", "dog"))
    assert picture.shape == (256, 3 * 192 + 2 * 4, 3)
    assert picture[:, :192].any(), "the truth"
    assert picture[:, 196:388].any(), "the box before"
    assert not picture[:, 392:].any(), "a score of 0.1 is not drawn"


@pytest.mark.parametrize("missing", ["torchmetrics", "pycocotools"])
def test_without_its_extra_it_is_one_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == missing else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=f"task.name is detection and {missing} is not installed") as error:
        task_of(task_section(name="detection"))
    assert error.value.remedy == "pip install 'demport[detection]'"


def test_data_and_network_must_be_of_the_task() -> None:
    data = load(config.Data(source="canvases:boxes"))
    detection, classes = (task_of(task_section(name=name)) for name in ("detection", "classification"))
    demand_targets("detection", detection, data)
    with pytest.raises(UserError, match="the data have boxes for each image"):
        demand_targets("classification", classes, data)
    with pytest.raises(UserError, match="the data have one class for each image"):
        demand_targets("detection", detection, load(config.Data(source="digits")))
    model = build_for(config.Model(name="demo:detector"), data)
    demand_task(model, "demo:detector", detection, data)
    with pytest.raises(UserError, match="demo:resnet answers two images with Tensor"):
        demand_task(build_for(config.Model(name="demo:resnet"), data), "demo:resnet", detection, data)


def test_what_coco_does_not_count_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_detections"):
        task_section(name="detection", max_detections=101)
    assert task_section(name="detection", max_detections=100).metric == "mAP50-95"
