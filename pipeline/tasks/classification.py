"""One class an image: cross entropy, and whether the largest logit is the label's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.config.section import ClassWeights, Fraction, Section
from pipeline.models.networks import demand_logits
from pipeline.tasks import Task
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.data import Dataset


class Options(Section):
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing of the cross entropy.")
    class_weights: ClassWeights = Field(
        default=None,
        description="What an image of each class counts for in the loss, in the order of the classes; balanced: images "
        "/ (classes * images of the class); null: all alike.",
    )


def classification(options: Options) -> Task:
    """Of logits (B, K) and labels int64 (B,) or float (B, K)."""
    own = options.class_weights
    task = _weighted(options, torch.tensor(own) if isinstance(own, tuple) else None)
    if own is None:
        return task
    return replace(task, fitted=lambda data: _weighted(options, weights_of(own, data)))


def weights_of(own: tuple[float, ...] | str, data: Dataset) -> Tensor:
    """float32 (K,). UserError where there is not one for each class."""
    if own == "balanced":
        counts = torch.bincount(data.train.labels, minlength=len(data.names)).clamp(min=1)
        return (len(data.train) / (len(data.names) * counts.double())).float()
    if len(own) != len(data.names):
        listed = ", ".join(data.names[:10])
        problem = f"task.class_weights has {len(own)} numbers, and the data {len(data.names)} classes"
        raise UserError(problem, f"one for each of {listed}", "mend it, or set it to balanced")
    return torch.tensor(own)


def _weighted(options: Options, weights: Tensor | None) -> Task:
    def loss(outputs: Any, labels: Tensor) -> Tensor:
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"the network answers with {type(outputs).__name__} while it trains",
                "one tensor of logits (N, K)",
                "switch its auxiliary outputs off, e.g. model.args: {aux_logits: false}",
            )
        weight = None if weights is None else weights.to(outputs.device)
        return F.cross_entropy(outputs.float(), labels, weight, label_smoothing=options.label_smoothing)

    return Task(
        "accuracy",
        loss,
        lambda logits, labels: answer(logits) == labels,
        answer,
        probability,
        demand=lambda logits, name, classes, _: demand_logits(logits, name, classes),
        distance=apart,
    )


def apart(logits: Tensor, aims: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (N, K), mean over the images (Hinton et al., arXiv 1503.02531)."""
    own, aim = (F.log_softmax(each.float() / temperature, 1) for each in (logits, aims))
    return temperature**2 * F.kl_div(own, aim, log_target=True, reduction="batchmean")


def answer(logits: Tensor) -> Tensor:
    return logits.argmax(1)


def probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax of each image's own class, float64 (B,)."""
    finite = torch.nan_to_num(logits.double(), nan=-1e30, posinf=1e30, neginf=-1e30)
    return finite.softmax(1).gather(1, labels[:, None])[:, 0]
