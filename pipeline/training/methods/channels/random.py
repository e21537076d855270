"""Channels at random: the control that every other ranking has to beat."""

from __future__ import annotations

import numpy as np

from pipeline.config.options.channels import Ranked
from pipeline.training.compute.device import derived_seed
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting


class Options(Ranked):
    pass


def random(options: Options, training: Training) -> Hooks:
    """Each choice follows from the seed and the step. Raises UserError where the target is out of reach."""
    cutting = Cutting(options, training)

    def score(step: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        draws = np.random.default_rng(derived_seed(training.seed, "channels", step))
        return draws.random(cutting.channels.costs.count)

    return cutting.hooks(score)
