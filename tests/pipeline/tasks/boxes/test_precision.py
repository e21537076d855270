"""Average precision beside that of torchmetrics and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.tasks.boxes.precision import RECALLS, THRESHOLDS, by_class, mean_precision, statistics
from pipeline.tasks.detection import f_score
from runtime.measure.statistics import resamples
from tests.pipeline.tasks.boxes.scenes import CLASSES, for_torchmetrics, scene


def torchmetrics_of(scenes: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    detection = pytest.importorskip("torchmetrics.detection", reason="torchmetrics is not installed")
    # torchmetrics rounds them to float32 by itself, and a recall that lies on a step falls to its other side
    steps = {"iou_thresholds": THRESHOLDS.tolist(), "rec_thresholds": RECALLS.tolist()}
    metric = detection.MeanAveragePrecision(class_metrics=True, **steps)
    for detections, targets in scenes:
        predicted, truth = for_torchmetrics(detections, targets)
        metric.update([predicted], [truth])
    result: dict[str, torch.Tensor] = metric.compute()
    return result


@pytest.mark.parametrize("crowds", [False, True])
def test_it_is_that_of_torchmetrics(crowds: bool) -> None:
    scenes = [scene(seed, crowds) for seed in range(60)]
    rows = [statistics(*one).numpy() for one in scenes]
    theirs, whole = torchmetrics_of(scenes), np.ones((1, len(scenes)), np.int64)
    assert mean_precision(rows, whole)[0] == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert mean_precision(rows, whole, slice(0, 1))[0] == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert mean_precision(rows, whole, slice(5, 6))[0] == pytest.approx(float(theirs["map_75"]), abs=1e-6)
    assert by_class(rows) == pytest.approx(theirs["map_per_class"].numpy(), abs=1e-6)
    assert float(np.nanmean(by_class(rows, slice(0, 1)))) == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert 0.1 < float(theirs["map"]) < 0.9


def test_a_resample_is_the_images_that_were_drawn() -> None:
    # of equal scores, an image drawn twice has each twice in a row here, and there all once and then again
    scenes = [scene(seed, ties=False) for seed in range(12)]
    rows = [statistics(*one).numpy() for one in scenes]
    counts = next(iter(resamples(12)))[:3]
    ours = mean_precision(rows, counts)
    for own, row in zip(ours, counts, strict=True):
        drawn = [scenes[image] for image in np.repeat(np.arange(12), row)]
        assert own == pytest.approx(float(torchmetrics_of(drawn)["map"]), abs=1e-6)
    assert len(set(ours.tolist())) == 3


def test_a_case_worked_by_hand() -> None:
    """Two boxes of class 0; the best detection misses, the second hits one at an overlap of 0.81."""
    targets = torch.tensor([[0.0, 0, 0.5, 0.5, 0, 0], [0.5, 0.5, 1, 1, 0, 0]])
    detections = torch.tensor([[0.0, 0.6, 0.3, 0.9, 0.9, 0], [0.0, 0, 0.45, 0.45, 0.8, 0]])
    rows = [statistics(detections, targets).numpy()]
    whole = np.ones((1, 1), np.int64)
    # precision 1/2 up to a recall of 1/2: 51 of the 101 recalls
    assert mean_precision(rows, whole, slice(0, 1))[0] == pytest.approx(0.5 * 51 / 101)
    assert mean_precision(rows, whole)[0] == pytest.approx(0.5 * 51 / 101 * 7 / 10)  # 0.5 to 0.8
    assert f_score(statistics(detections, targets), 0.3) == pytest.approx(2 * 1 / 4)


def test_nothing_to_find_and_nothing_found() -> None:
    nothing = torch.zeros(0, 6)
    rows = [statistics(nothing, nothing).numpy()]
    assert mean_precision(rows, np.ones((2, 1), np.int64)).tolist() == [0, 0]
    assert f_score(torch.from_numpy(rows[0]), 0.3) == 1.0
    box = torch.tensor([[0.1, 0.1, 0.2, 0.2, 1, 0]])
    missed = [statistics(nothing, box).numpy()]
    assert np.isnan(by_class(missed)[0]) and by_class(missed)[1] == 0
    assert f_score(torch.from_numpy(missed[0]), 0.3) == 0.0


def test_more_detections_than_count_are_dropped() -> None:
    many = torch.rand(130, 6, generator=torch.Generator().manual_seed(0)) * 0.4
    many[:, 2:4] += 0.5
    many[:, 5] = 0
    rows = statistics(many, torch.tensor([[0.1, 0.1, 0.6, 0.6, 0, 0]]))
    assert len(rows) == 101
    assert float(rows[:100, 1].min()) >= float(many[:, 4].sort(descending=True)[0][99])
    assert CLASSES == 3
