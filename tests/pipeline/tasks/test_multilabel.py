"""Labels by binary cross entropy, judged by mean average precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from pipeline import config
from pipeline.config.task import distils, task_of
from pipeline.tasks.multilabel import average_precisions, mean_average_precision, statistics
from runtime.errors import UserError


def drawn(n: int = 40, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in steps of 1/4, so that some are equal; labels of three frequencies."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(n, classes, generator=generator) < torch.tensor([0.5, 0.2, 0.8])[:classes]).float()
    logits = ((torch.randn(n, classes, generator=generator) + labels) * 4).round() / 4
    return logits, labels


def test_average_precision_is_that_of_scikit_learn_also_where_logits_are_equal() -> None:
    logits, labels = drawn()
    own = average_precisions(statistics(logits, labels).numpy())
    expected = [average_precision_score(labels[:, k].numpy(), logits[:, k].numpy()) for k in range(3)]
    assert own.tolist() == pytest.approx(expected, abs=1e-12)
    assert len(np.unique(logits[:, 0].numpy())) < 40


def test_a_resample_weighs_each_image_as_often_as_it_was_drawn() -> None:
    logits, labels = drawn()
    counts = np.stack([np.random.RandomState(k).randint(0, 4, 40) for k in range(5)])
    own = mean_average_precision(statistics(logits, labels).numpy(), counts)
    for row, value in zip(counts, own, strict=True):
        each = [
            average_precision_score(np.repeat(labels[:, k].numpy(), row), np.repeat(logits[:, k].numpy(), row))
            for k in range(3)
        ]
        assert value == pytest.approx(float(np.mean(each)), abs=1e-12)


def test_a_label_that_no_image_has_is_left_out_and_no_number_is_wrong() -> None:
    """Ranked 1 (has it), 2, 3 (has it): (1/1 + 2/3) / 2."""
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    own = average_precisions(statistics(logits, labels).numpy())
    assert own[0] == pytest.approx((1 + 2 / 3) / 2) and math.isnan(own[1])
    whole = np.ones((1, 3), np.int64)
    assert mean_average_precision(statistics(logits, labels).numpy(), whole)[0] == pytest.approx(5 / 6)
    logits[0] = torch.nan  # now the last of all: ranks 2 (1/2) and 3 (2/3)
    worse = mean_average_precision(statistics(logits, labels).numpy(), whole)
    assert worse[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert mean_average_precision(statistics(logits, labels * 0).numpy(), whole).tolist() == [0.0]


def test_the_loss_is_the_mean_of_the_binary_cross_entropies() -> None:
    task = task_of(config.task_section(name="multilabel"))
    logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert float(task.loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    smooth = task_of(config.task_section(name="multilabel", label_smoothing=0.2))
    other = (math.log(2) + 0.9 * math.log(1 + math.exp(2)) + 0.1 * math.log(1 + math.exp(-2))) / 2
    assert float(smooth.loss(logits, labels)) == pytest.approx(other, rel=1e-6)
    assert task.score(torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0]])).tolist() == [
        pytest.approx(2 / 3)
    ]
    with pytest.raises(UserError, match="answers with tuple while it trains"):
        task.loss((logits, logits), labels)


def test_a_network_is_as_far_from_another_as_their_labels_say() -> None:
    section = config.task_section(name="multilabel")
    task = task_of(section)
    assert distils(section) and task.distance is not None
    logits, other = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.0]])
    assert float(task.distance(logits, logits, 3.0)) == pytest.approx(0, abs=1e-6)
    q, p = (other / 2).sigmoid(), (logits / 2).sigmoid()
    kl = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
    assert float(task.distance(logits, other, 2.0)) == pytest.approx(4 * float(kl), rel=1e-5)
