"""Bernoulli gates whose probabilities are learned with the weights (Guenter and Sideris 2022, arXiv 2205.04650).

Channel i is multiplied by xi_i ~ Bernoulli(theta_i), drawn anew in each step. Weights follow the loss of the draw, and
`decay` times theta_i; theta_i <- clip(theta_i - eta (dC/dxi_i + decay/2 |w_i|^2 + cost), 0, 1). The cost of a draw is
linear in theta, so theta ends at 0 or 1. A channel whose theta stays under FALLEN for an epoch goes; after `until` of
the steps those under 1/2 go, the gates of the others become 1, and the network trains on without gates.

Inferred from abstract and introduction: the exact weight of each term, and the estimate of the gradient in theta.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.section import NonNegative, Section
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.training.hooks import Dead, Hooks, Training
from pipeline.training.methods.channels.cutting import HELD, Cutting
from pipeline.training.methods.channels.magnitude import squares
from pipeline.training.methods.gated.draws import Draws
from pipeline.training.state import TrainState
from runtime.errors import UserError

FALLEN = 0.05
CLOSED = 1e-6  # not 0: in front of a ReLU, whose slope at 0 is 0, the gradient of a closed gate would be lost
THETA, LOW = "theta", "low"


class Options(Section):
    cost: NonNegative = Field(
        default=0.001, description="Of a channel, in units of the loss: decides how many go; 1e-4 to 1e-2."
    )
    theta: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="Probability of each gate at the start."
    )
    pace: NonNegative = Field(
        default=200.0, description="eta times the steps with gates: how far theta would go in them at a gradient of 1."
    )
    decay: NonNegative = Field(
        default=5e-4, description="Weight decay of a channel's own weights, times its theta, beside weight_decay."
    )
    until: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.6, description="Share of the steps with gates.")

    @property
    def removes(self) -> bool:
        """Channels leave at the end of an epoch."""
        return True


def variational(options: Options, training: Training) -> Hooks:
    """Raises UserError with fp16, or where no channel can have a gate."""
    if getattr(options, "amp", "none") == "fp16":
        raise UserError(
            "variational with amp: fp16, whose gradients are scaled before a gate sees them",
            "amp: none or bf16",
            "set sparse.amp: bf16",
        )
    method = Variational(options, training)
    return method.cutting.hooks(
        lambda step: np.zeros(0),
        begin=method.begin,
        after_backward=method.after_backward,
        after_step=method.after_step,
        due=method.due,
        dead=method.dead,
        figures=method.figures,
        census=method.census,
        state=method.saved,
        load=method.load,
    )


class Variational:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        self.cutting = Cutting(None, training)
        self.cutting.carry(THETA, options.theta)
        self.cutting.carry(LOW, 0.0)
        self._until = min(max(1, round(options.until * training.steps)), training.steps - 1)
        channels = self.cutting.channels
        if not (channels.can_go(channels.everything) & channels.open_sites).any():
            raise UserError(
                "no channel of the network can have a gate and go",
                "convolutions or linear layers whose channels are their own",
                "choose another network or method",
            )
        self._eta = options.pace / self._until
        self._draws = Draws(self.cutting, training.seed, self._until, self._gates, learns=True)
        self.theta: Floats = np.full(channels.costs.count, options.theta)  # by class, as these are
        self.low: Floats = np.zeros(channels.costs.count)  # 1: under FALLEN at the end of the last epoch
        self._open: Flags = channels.everything  # classes that have a gate

    def begin(self, state: TrainState) -> None:
        self._draws.close()
        self.cutting.begin(state)
        self._read()

    def after_backward(self, step: int) -> None:
        """The gradients of theta, from the draw's; decay of the weights, in proportion."""
        if self._draws.gates is None:
            return
        channels, gradient = self.cutting.channels, self._draws.gates.trained.grad
        assert gradient is not None
        own = gradient.double().cpu().numpy() / self._training.ranks.world
        slope = self._training.ranks.sum(torch.as_tensor(own)).numpy()
        size = channels.total(channels.makers, squares).cpu().numpy()
        moved = self.theta - self._eta * (slope + self._options.decay / 2 * size + self._options.cost)
        self.theta = np.where(self._open, np.clip(moved, 0, 1), 1.0)
        for part in channels.makers:
            if part.tensor.grad is not None:
                rows = torch.as_tensor(self.theta[part.classes], dtype=part.tensor.dtype, device=part.tensor.device)
                part.tensor.grad.addcmul_(part.spread(rows), part.tensor.detach(), value=self._options.decay)

    def after_step(self, step: int, stepped: bool) -> None:
        self.cutting.after_step(step, stepped)
        self._draws.step = step + 1
        if self._draws.gates is not None:
            self._draws.gates.trained.grad = None
        self._draws.draw()

    def due(self, step: int) -> bool:
        """At the end of an epoch with gates, and where these end."""
        epoch_ends = (step + 1) % self._training.steps_per_epoch == 0
        return step + 1 == self._until or (epoch_ends and step + 1 < self._until)

    def dead(self, step: int) -> Dead | None:
        """Channels whose theta was low at the end of two epochs in a row; at the end of the gates those under 1/2."""
        self._draws.close()
        low = (self.theta < (0.5 if step + 1 == self._until else FALLEN)) & self._open
        gone = low if step + 1 == self._until else low & (self.low > 0)
        for group in self.cutting.channels.costs.groups:
            own = np.unique(group.classes)
            alive = own[self.cutting.alive[own]]
            if len(alive) and gone[alive].all():
                gone[alive[np.argmax(self.theta[alive])]] = False
        self.low = low.astype(np.float64)
        self.cutting.mark(gone & self.cutting.alive, HELD)
        self.cutting.hold()
        self._write()
        return self.cutting.none()

    def census(self) -> Dead:
        self._draws.close()
        return self.cutting.none()

    def figures(self, step: int) -> dict[str, Any]:
        """Beside what goes: the mean of theta and how many are between 5 and 95 %, while there are gates."""
        if self._draws.gates is None:
            return self.cutting.figures(step)
        theta = self.theta[self._open & self.cutting.alive]
        undecided = int(((theta > FALLEN) & (theta < 1 - FALLEN)).sum())
        mean = float(theta.mean()) if len(theta) else 1.0
        return self.cutting.figures(step) | {"theta": mean, "undecided": undecided}

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self._write()
        return self._draws.saved()

    def load(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        self._draws.load(document)
        self.cutting.read()
        self._read()

    def _write(self) -> None:
        self.cutting.written(THETA, self.theta)
        self.cutting.written(LOW, self.low)

    def _read(self) -> None:
        """Gates over the network as it is; what cannot go has none."""
        own = self.cutting
        self.theta, self.low = own.numbers_of(THETA), own.numbers_of(LOW)
        if self._draws.step < self._until:
            self._open = own.channels.can_go(own.alive) & own.channels.open_sites
        self._draws.open()

    def _gates(self, draws: Floats) -> tuple[Floats, Floats]:
        """In eval mode theta itself."""
        opened = (draws < self.theta) | ~self._open
        return np.where(opened, 1.0, CLOSED), np.where(self._open, self.theta, 1.0)
