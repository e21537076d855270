"""HESSO: the least salient channels fade linearly to exactly 0, period by period (Chen et al. 2024, arXiv 2409.09085).

At the start of each period a channel's score is the mean of five terms over its own parameters w with gradient g, each
divided by its L2 norm over all channels: |w|; |w| / sqrt(size); (1 - cos(w, g)) / 2, for what descent pushes towards 0
counts less; |w.g|; (w.g)^2 / 2. No penalty is to be tuned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from pipeline.config.options.channels import Ranked
from pipeline.config.section import Fraction, Positive
from pipeline.surgery.channels.ledger import Floats
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.methods.channels.magnitude import squares
from pipeline.training.methods.channels.taylor import first_order
from pipeline.training.state import TrainState
from pipeline.training.steering.channels import Means


class Options(Ranked):
    rounds: Positive = Field(default=8, description="Periods, evenly spaced, on a geometric way to the target.")
    fade: Fraction = Field(default=1.0, description="Share of a period over which its channels fade linearly to 0.")


def hesso(options: Options, training: Training) -> Hooks:
    """Raises UserError where the target is out of reach."""
    cutting, gradients = Cutting(options, training), Means()

    def begin(state: TrainState) -> None:
        gradients.clear()
        cutting.begin(state)

    def after_backward(step: int) -> None:
        if cutting.picks_after(step):
            own, channels = cutting.channels.own, cutting.channels
            gradients.clear()
            gradients.add(product=channels.total(own, first_order), squared=channels.total(own, squared_gradient))

    def score(step: int) -> Floats:
        channels = cutting.channels
        if not gradients.steps:  # they overflowed in this step: the weights alone decide
            return salience(
                np.sqrt(channels.total(channels.own, squares).cpu().numpy()), channels.count_of(channels.own)
            )
        size = np.sqrt(channels.total(channels.own, squares).cpu().numpy())
        count = channels.costs.count
        product, slope = gradients.mean("product", count), np.sqrt(gradients.mean("squared", count))
        return salience(size, channels.count_of(channels.own), product, slope)

    def load(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        cutting.read()

    return cutting.hooks(score, begin=begin, after_backward=after_backward, load=load)


def squared_gradient(parameter: Tensor) -> Tensor | None:
    return None if parameter.grad is None else parameter.grad**2


def salience(size: Floats, entries: Floats, product: Floats | None = None, slope: Floats | None = None) -> Floats:
    """(count,) from |w|, the number of entries, w.g and |g| of each class; without gradients the first two terms."""
    terms = [size, size / np.sqrt(np.maximum(entries, 1))]
    if product is not None and slope is not None:
        cosine = product / np.maximum(size * slope, 1e-30)
        terms += [(1 - cosine) / 2, np.abs(product), product**2 / 2]
    return sum((term / max(float(np.linalg.norm(term)), 1e-30) for term in terms), np.zeros(len(size))) / len(terms)
