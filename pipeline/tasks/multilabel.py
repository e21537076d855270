"""Any number of labels an image: binary cross entropy of each, judged by the mean over labels of average precision.

Logits (B, K); targets float32 (B, K), 1 where an image has the label, 0 where it has not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.config.section import Fraction, Section
from pipeline.models.networks import demand_logits
from pipeline.tasks import Pooled, Task
from runtime.errors import UserError


class Options(Section):
    label_smoothing: Fraction = Field(
        default=0.0, description="Share by which each target is drawn from 0 or 1 towards 1/2."
    )


def multilabel(options: Options) -> Task:
    """Of logits (B, K) and labels (B, K)."""

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"the network answers with {type(outputs).__name__} while it trains",
                "one tensor of logits (N, K)",
                "switch its auxiliary outputs off, e.g. model.args: {aux_logits: false}",
            )
        aims = labels.float() * (1 - options.label_smoothing) + options.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs.float(), aims)

    return Task(
        "mAP",
        loss,
        lambda logits, labels: ((logits > 0) == (labels > 0.5)).double().mean(1),
        pooled=Pooled(statistics, mean_average_precision, by_class=average_precisions),
        targets="labels",
        demand=lambda logits, name, classes, _: demand_logits(logits, name, classes),
        distance=apart,
    )


def apart(logits: Tensor, aims: Tensor, temperature: float) -> Tensor:
    """T^2 times the binary KL(teacher || student) of logits (N, K), mean over images and labels."""
    own, aim = logits.float() / temperature, aims.float() / temperature
    shares = aim.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(aim, shares)
    return temperature**2 * (F.binary_cross_entropy_with_logits(own, shares) - entropy)


def statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 (B, 2K): logits, and labels. An image with a logit that is not a number ranks last where it has a label,
    and first where it has none."""
    broken = torch.isnan(logits).any(1, keepdim=True)
    wrong = torch.where(labels > 0.5, -torch.inf, torch.inf).double()
    return torch.cat([torch.where(broken, wrong, logits.double()), (labels > 0.5).double()], 1)


def mean_average_precision(rows: Any, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,): mean over the labels that an image has, in each of the R resamples."""
    every = _average_precisions(np.asarray(rows), counts)
    present = ~np.isnan(every)
    result: NDArray[np.float64] = np.where(present, every, 0).sum(1) / np.maximum(present.sum(1), 1)
    return result


def average_precisions(rows: Any) -> NDArray[np.float64]:
    """(K,), NaN of labels that no image has."""
    result: NDArray[np.float64] = _average_precisions(np.asarray(rows), np.ones((1, len(rows)), np.int64))[0]
    return result


def _average_precisions(rows: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, K): the precision at the logit of each image that has the label, mean over these images; images of one logit
    stand at one place, as in scikit-learn's average_precision_score."""
    classes = rows.shape[1] // 2
    result = np.full((len(counts), classes), np.nan)
    for label in range(classes):
        order = np.argsort(-rows[:, label], kind="stable")
        values, has, weights = rows[order, label], rows[order, classes + label], counts[:, order]
        last = np.searchsorted(-values, -values, side="right") - 1  # of the images with the same logit
        right = weights * has
        precision = np.cumsum(right, 1)[:, last] / np.maximum(np.cumsum(weights, 1)[:, last], 1)
        total = right.sum(1)
        some = total > 0
        result[some, label] = (right * precision).sum(1)[some] / total[some]
    return result
