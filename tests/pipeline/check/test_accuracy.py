"""What a hop changed, which one broke the budget, and the images it got wrong, on answers that are written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from pipeline.check.accuracy import (
    Images,
    by_class,
    drops,
    hop,
    macro_f1,
    metric_of,
    own_metric,
    title,
)
from pipeline.check.forms import Form, Results
from pipeline.check.results import WorstImage
from pipeline.check.worst import save_images, worst_images
from pipeline.config.task import task_of
from runtime.errors import UserError
from runtime.measure.accuracy import Accuracy

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
TASK = task_of()


def answers(classes: list[int], sure: float = 4.0) -> Accuracy:
    """Logits of three classes in which the given class leads by `sure`."""
    logits = np.zeros((len(classes), 3), np.float32)
    logits[np.arange(len(classes)), classes] = sure
    correct = np.array(classes) == LABELS
    return Accuracy(float(correct.mean()), len(classes), correct, logits, LABELS)


RIGHT = answers([0, 0, 0, 0, 1, 1, 1, 2])
WRONG = answers([0, 0, 0, 1, 1, 0, 2, 2])  # images 3, 5 and 6


def test_a_hop_with_its_paired_test() -> None:
    entry = hop("compact", Form("onnx", "torch"), {"torch": RIGHT, "onnx": WRONG}, margin_pp=10.0, task=TASK)
    assert (entry.source, entry.target, entry.reason) == ("torch", "onnx", None)
    assert (entry.max_abs, entry.top1_agreement, entry.accuracy_delta) == (4.0, 5 / 8, -3 / 8)
    paired = entry.paired
    assert paired and (paired.only_first, paired.only_second, paired.difference_pp) == (3, 0, -37.5)
    assert paired.p_value == pytest.approx(binomtest(0, 3).pvalue)
    assert entry.non_inferior == "undecided"  # three of eight images: the interval reaches beyond -10 points


def test_a_form_that_was_not_measured_says_why() -> None:
    entry = hop("compact", Form("engine", "onnx"), {"onnx": RIGHT, "engine": "no GPU"}, margin_pp=1.0, task=TASK)
    assert entry.reason == "no GPU"
    assert {entry.max_abs, entry.paired, entry.non_inferior, entry.accuracy_delta} == {None}


def test_losses_in_the_order_of_the_line() -> None:
    line = [Form("masked", None), Form("torch", "masked"), Form("engine", "torch"), Form("onnx", "torch")]
    losses = drops(line, {"masked": RIGHT, "torch": RIGHT, "engine": "no GPU", "onnx": WRONG}, RIGHT)
    assert [(title(form), -paired.difference_pp) for form, paired in losses] == [
        ("the network before the cut", 0.0), ("masked to torch", 0.0), ("torch to onnx", 37.5),
    ]  # fmt: skip
    assert drops([], {}, RIGHT) == []


def test_classes_with_the_worst_first() -> None:
    forms: Results = {"torch": RIGHT, "onnx": WRONG, "engine": "no GPU"}
    rows = by_class(Images(("cat", "dog", "cow", "none of them")), RIGHT, WRONG, forms, TASK)
    assert [(row.name, row.n, row.dense, row.compact) for row in rows] == [
        ("dog", 3, 1.0, 1 / 3), ("cat", 4, 1.0, 0.75), ("cow", 1, 1.0, 1.0),
    ]  # fmt: skip
    assert [row.forms for row in rows] == [
        {"torch": 1.0, "onnx": 1 / 3}, {"torch": 1.0, "onnx": 0.75}, {"torch": 1.0, "onnx": 1.0},
    ]  # fmt: skip
    assert [row.name for row in by_class(Images(), RIGHT, WRONG, {}, TASK)] == ["1", "0", "2"]


def test_the_worst_images_lost_most_and_were_right_before(tmp_path: Path) -> None:
    sure = answers([0, 0, 0, 1, 1, 0, 2, 2], sure=9.0)
    mixed = Accuracy(
        WRONG.mean, 8, WRONG.scores, np.where(np.arange(8)[:, None] == 5, sure.outputs, WRONG.outputs), LABELS
    )
    names = Images(("cat", "dog", "cow"), (0.5,), (0.25,))
    entries = worst_images(RIGHT, mixed, names, "worst", TASK)
    assert [entry.index for entry in entries] == [5, 3, 6]
    share = float(np.exp(4) / (np.exp(4) + 2))
    shares = round(share, 4), round((1 - share) / 2, 4)
    assert entries[1] == WorstImage(3, "cat", "cat", "dog", *shares, "worst/3.png")
    assert worst_images(WRONG, RIGHT, names, "worst", TASK) == ()
    all_wrong = answers([1, 1, 1, 1, 0, 0, 0, 0])
    assert [entry.index for entry in worst_images(WRONG, all_wrong, names, "worst", TASK)] == [
        0,
        1,
        2,
        4,
        7,
    ]  # not those wrong before

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Image i holds the pixel i / 7 before it was normalised by (x - 0.5) / 0.25."""
        for start in (0, 3, 6):
            pixels = [np.full((1, 4, 4), i / 7) for i in range(start, min(start + 3, 8))]
            yield (np.stack(pixels) - 0.5) / 0.25, LABELS[start : start + 3]

    save_images(entries, batches(), names, tmp_path, TASK)
    assert [entry.file for entry in entries] == ["worst/5.png", "worst/3.png", "worst/6.png"]
    assert (entries[0].label, entries[0].before, entries[0].after) == ("dog", "dog", "cat")
    read = {i: np.asarray(Image.open(tmp_path / "worst" / f"{i}.png")) for i in (3, 5, 6)}
    assert {i: picture.shape for i, picture in read.items()} == dict.fromkeys((3, 5, 6), (4, 4))
    assert [int(read[i][0, 0]) for i in (3, 5, 6)] == [round(255 * i / 6) for i in (3, 5, 6)]


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean() * 50)


def not_a_number(logits: np.ndarray, labels: np.ndarray) -> float:
    return float("nan")


def test_a_metric_of_ones_own() -> None:
    metric = own_metric("tests.pipeline.check.test_accuracy:f1")
    assert metric_of({"torch": RIGHT, "onnx": WRONG, "engine": "no GPU"}, metric) == {"torch": 50.0, "onnx": 31.25}
    assert own_metric(None) is None and metric_of({"torch": RIGHT}, None) == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tests.pipeline.check.test_accuracy:nothing", "check.metric"),
        ("tests.pipeline.check.test_accuracy:not_a_number", "answered nan; a finite number; mend the function"),
        (
            "tests.pipeline.check.test_accuracy:answers",
            "check.metric tests.pipeline.check.test_accuracy:answers raised",
        ),
    ],
)
def test_a_metric_that_does_not_work(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        metric_of({"torch": RIGHT}, own_metric(spec))
    assert message in str(caught.value)
    assert "check.metric" in caught.value.found


def test_macro_f1_is_the_mean_over_classes_that_have_images() -> None:
    """Class 0: 2 TP, 1 FP, 1 FN; class 1: 1 TP, 1 FP, 1 FN; class 3: 0 TP; class 2 has no image, but one answer."""
    targets = np.array([0, 0, 0, 1, 1, 3])
    answers = np.array([0, 0, 1, 0, 1, 2])
    outputs = np.eye(4, dtype=np.float32)[answers]
    result = Accuracy(0.5, 6, answers == targets, outputs, targets)
    expected = (4 / (4 + 1 + 1) + 2 / (2 + 1 + 1) + 0) / 3
    assert macro_f1(result, task_of()) == pytest.approx(expected)
    broken = outputs.copy()
    broken[0] = np.nan  # no answer: class 0 has 1 TP, 1 FP, 2 FN
    assert macro_f1(Accuracy(0.3, 6, answers == targets, broken, targets), task_of()) == pytest.approx(
        (2 / (2 + 1 + 2) + 2 / 4 + 0) / 3
    )
