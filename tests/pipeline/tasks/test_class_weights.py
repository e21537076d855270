"""Weights of classes in the loss, and soft labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight

from pipeline import config
from pipeline.config.task import task_of
from pipeline.data import Dataset, load
from pipeline.data.arrays import dataset
from pipeline.data.raw import Raw
from runtime.errors import UserError

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 2, 1])


def skewed() -> Dataset:
    y = np.repeat([0, 1, 2], [12, 6, 2])
    x = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    return dataset(Raw("skewed", x, y, x[::5], y[::5], ("a", "b", "c")), None, "")


def test_each_image_counts_what_its_class_weighs() -> None:
    """The weighted mean of -log softmax, by hand."""
    task = task_of(config.task_section(class_weights=[1.0, 2.0, 0.5]))
    own = [-float(row[label] - row.exp().sum().log()) for row, label in zip(LOGITS, LABELS, strict=True)]
    weights = [1.0, 2.0, 0.5, 2.0]
    expected = sum(w * x for w, x in zip(weights, own, strict=True)) / sum(weights)
    assert float(task.loss(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-6)
    plain = task_of().loss(LOGITS, LABELS)
    assert float(plain) == pytest.approx(sum(own) / 4, rel=1e-6)
    assert float(task_of(config.task_section(class_weights=[3.0, 3.0, 3.0])).loss(LOGITS, LABELS)) == pytest.approx(
        float(plain), rel=1e-6
    )


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    data = skewed()
    task = task_of(config.task_section(class_weights="balanced"), data)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=data.train.labels.numpy())
    assert weights.tolist() == pytest.approx([20 / 36, 20 / 18, 20 / 6])
    fixed = task_of(config.task_section(class_weights=weights.tolist()), data)
    torch.testing.assert_close(task.loss(LOGITS, LABELS), fixed.loss(LOGITS, LABELS))
    assert float(task.loss(LOGITS, LABELS)) != pytest.approx(float(task_of().loss(LOGITS, LABELS)))


def test_soft_labels_are_the_blend_of_the_losses_of_both() -> None:
    task = task_of()
    hot = torch.eye(3)
    soft = 0.3 * hot[LABELS] + 0.7 * hot[LABELS.roll(1)]
    blend = 0.3 * task.loss(LOGITS, LABELS) + 0.7 * task.loss(LOGITS, LABELS.roll(1))
    torch.testing.assert_close(task.loss(LOGITS, soft), blend)
    torch.testing.assert_close(task.loss(LOGITS, hot[LABELS]), task.loss(LOGITS, LABELS))


def test_weights_that_fit_no_classes_are_one_line() -> None:
    section = config.task_section(class_weights=[1.0, 2.0])
    with pytest.raises(UserError, match=r"task\.class_weights has 2 numbers, and the data 3 classes") as caught:
        task_of(section, skewed())
    assert caught.value.expected == "one for each of a, b, c"
    for value in ([], [0.0, 0.0], [-1.0, 1.0], [1.0, "b"], "equal", [True, 1.0], [float("inf"), 1.0]):
        with pytest.raises(ValidationError, match="a number from 0 on for each class"):
            config.task_section(class_weights=value)
    assert task_of(config.task_section(), load(config.Data())).fitted is None
    assert dataclasses.replace(task_of(section), fitted=None).metric == "accuracy"
