"""SCL: connectivity learned beside the weights (after the abstract of arXiv 2201.05020; what it leaves open is ours).

The network computes with w * H(m), H(m) = 1 where m > 0. The gradient of m is that of the masked weight times w, summed
over a kernel, divided by its norm over each output; added is that of alpha times the share of an output's connections
that live. m has plain SGD of its own. A connection that is off keeps w and m, and may come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.masks import Masking, Share
from pipeline.config.section import NonNegative
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks
from pipeline.training.methods.straight_through.dense import Dense
from pipeline.training.methods.weights.layers import figures_of, shapes_of
from pipeline.training.state import TrainState
from runtime.errors import UserError

LIMIT = 1.0  # m stays in [-1, 1]: what is far below 0 would never come back


class Options(Masking):
    alpha: NonNegative = Field(default=1.0, description="Weight of the connections that live; more makes it sparser.")
    grain: Literal["weight", "kernel"] = Field(
        default="kernel", description="What is one connection: a weight, or a whole kernel of a convolution."
    )
    connectivity: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="m before the first step.")
    rate_share: Share = Field(default=0.1, description="Learning rate of m, as a share of that of the weights.")
    anneal_from: Share = Field(default=0.67, description="Share of the steps after which alpha falls linearly.")
    freeze_at: Share = Field(default=0.9, description="Share of the steps where alpha is 0 and m stays.")


def scl(options: Options, training: Training) -> Hooks:
    """Raises UserError where nothing but the last layer has weights, or where m would freeze before alpha falls."""
    if options.freeze_at < options.anneal_from:
        raise UserError(
            f"sparse.freeze_at {options.freeze_at:g} comes before sparse.anneal_from {options.anneal_from:g}",
            "freezing after annealing",
            "raise sparse.freeze_at",
        )
    method = Scl(options, training)
    return Hooks(
        begin=method.begin, carried={"dense": method.dense.weights, "connectivity": method.connectivity},
        after_backward=method.after_backward, after_step=method.after_step, state=method.state, load=method.load,
        figures=method.figures,
    )  # fmt: skip


class Scl:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        names = list(shapes_of(training.network))[:-1]
        if not names:
            raise UserError("the network has a single layer with weights", "hidden layers", "use another method")
        self.dense = Dense(training.network, names, lambda name, weight: self.connectivity[name] > 0)
        self.connectivity = {name: torch.full_like(w, options.connectivity) for name, w in self.dense.weights.items()}
        """m, of the shape of the weights; equal within a kernel where that is the connection."""
        self._flips = 0  # since the last row of the history

    def begin(self, state: TrainState) -> None:
        self.dense.begin(state)

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        self.dense.before_step(lambda name, weight, masked: self._gradient(step, name, weight, masked))

    def after_step(self, step: int, stepped: bool) -> None:
        if stepped:
            self.dense.after_step()

    def figures(self, step: int) -> dict[str, Any]:
        flips, self._flips = self._flips, 0
        return {**figures_of(Masks(self.dense.living()))(step), "flips": flips, "alpha": self._alpha(step)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"flips": self._flips}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        self._flips = int(document["flips"])
        self.dense.restore()

    def _alpha(self, step: int) -> float:
        start, end = (share * self._training.steps for share in (self._options.anneal_from, self._options.freeze_at))
        return self._options.alpha * min(1.0, max(0.0, (end - step) / max(1e-9, end - start)))

    def _gradient(self, step: int, name: str, weight: Tensor, masked: Tensor) -> Tensor:
        """Moves m, and gives the gradient of the weights under the connections of this step."""
        m = self.connectivity[name]
        lives = m > 0
        if step < self._options.freeze_at * self._training.steps:
            rate = self._options.rate_share * self._training.rate(step)
            m.sub_(rate * connectivity_gradient(weight, masked, self._alpha(step), self._options.grain))
            m.clamp_(-LIMIT, LIMIT)
            self._flips += int(((m > 0) != lives).sum())
        return masked * lives


def connectivity_gradient(weight: Tensor, gradient: Tensor, alpha: float, grain: str) -> Tensor:
    """Of m, for weights (O, I, ...) and the gradient of the masked ones, which is the dense one."""
    product = (gradient * weight).flatten(2) if weight.ndim > 2 else (gradient * weight).unsqueeze(2)
    if grain == "kernel":
        product = product.sum(2, keepdim=True)
    norm = product.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1)
    own: Tensor = product / norm + alpha / product[0].numel()
    return own.expand(-1, -1, weight[0, 0].numel()).reshape(weight.shape)
