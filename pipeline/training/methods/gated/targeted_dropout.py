"""Targeted dropout: the weakest channels are dropped at random until the network does without them, then they go
(Gomez et al. 2019, arXiv 1905.13678; units).

In each training step each of the targeted channels, those of the smallest norm, is dropped with probability `alpha`, as
a whole; in eval mode all of them are. How many are targeted rises linearly over half of the steps up to the cut; which,
is decided anew REFRESHES times on the way.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from pipeline.config.options.channels import Ranked
from pipeline.config.section import Fraction
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.training.hooks import Dead, Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.methods.channels.magnitude import norms, relative
from pipeline.training.methods.gated.draws import Draws
from pipeline.training.state import TrainState

REFRESHES = 40
TARGETED = "targeted"


class Options(Ranked):
    alpha: Fraction = Field(default=0.5, description="Probability that a targeted channel is dropped in a step.")
    scope: Literal["global", "group"] = Field(
        default="group", description="group: the same share of each group is targeted, as in the paper; global: norms, "
        "divided by the mean of their group, compete.",
    )  # fmt: skip


def targeted_dropout(options: Options, training: Training) -> Hooks:
    """Raises UserError where the target is out of reach."""
    method = TargetedDropout(options, training)
    return method.cutting.hooks(
        method.score,
        begin=method.begin,
        after_step=method.after_step,
        dead=method.dead,
        census=method.census,
        state=method.saved,
        load=method.load,
    )


class TargetedDropout:
    def __init__(self, options: Options, training: Training) -> None:
        self._options = options
        self.cutting = Cutting(options, training, eligible=lambda channels: channels.open_sites)
        self.cutting.carry(TARGETED, 0.0)
        self._end = self.cutting.picks[-1]
        self._every = max(1, self._end // REFRESHES)
        self._draws = Draws(self.cutting, training.seed, self._end, self._gates)

    def score(self, step: int) -> Floats:
        """Norms, within their group."""
        return relative(norms(self.cutting.channels, "l2"), self.cutting.channels)

    def begin(self, state: TrainState) -> None:
        self._draws.close()
        self.cutting.begin(state)
        self._open()

    def after_step(self, step: int, stepped: bool) -> None:
        self.cutting.after_step(step, stepped)
        self._draws.step = step + 1
        gates = self._draws.gates
        if gates is not None and (step + 1) % self._every == 0 and step + 1 < self._end:
            gates.detach()
            progress = min(1.0, 2 * (step + 1) / self._end)
            waypoint = 1 - progress * (1 - self.cutting.asked)
            self.targeted = self.cutting.selected(self.score(step), waypoint)
            gates.attach()
        self._draws.draw()

    def dead(self, step: int) -> Dead | None:
        self._draws.close()
        self.cutting.written(TARGETED, self.targeted.astype(np.float64))
        none = self.cutting.dead(step, self.score)
        if none is None:  # no removal, after which gates begin anew
            self._open()
        return none

    def census(self) -> Dead:
        self._draws.close()
        return self.cutting.none()

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.cutting.written(TARGETED, self.targeted.astype(np.float64))
        return self._draws.saved()

    def load(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        self._draws.load(document)
        self.cutting.read()
        self._open()

    def _open(self) -> None:
        self.targeted = (self.cutting.numbers_of(TARGETED) > 0) & self.cutting.alive
        self._draws.open()

    def _gates(self, draws: Floats) -> tuple[Flags, Flags]:
        return ~(self.targeted & (draws < self._options.alpha)), ~self.targeted
