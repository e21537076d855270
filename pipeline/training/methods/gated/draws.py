"""Gates that are drawn anew for each step, the same in all processes, up to a step that ends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.surgery.channels.ledger import Floats
from pipeline.training.compute.device import derived_seed
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.methods.gated.gates import Gates

Values = Callable[[Floats], tuple[Any, Any]]
"""Uniform draws in [0, 1), one a class of channels -> gates of the training step, and gates of eval mode."""


class Draws:
    """`gates` are in force between `open` and `close`: while surgery looks at the network they have to be closed."""

    def __init__(self, cutting: Cutting, seed: int, end: int, values: Values, learns: bool = False) -> None:
        """`end`: the first step without gates. `learns`: whether the gates of the training step have a gradient."""
        self._cutting, self._seed, self._end, self._values, self._learns = cutting, seed, end, values, learns
        self.step = 0
        """The step that the gates in force are drawn for."""
        self.gates: Gates | None = None

    def open(self) -> None:
        """Over the network as it is, where there are any at this step."""
        if self.step >= self._end:
            return
        self.gates = Gates(self._cutting.channels, self._cutting.state.network)
        self.gates.trained.requires_grad_(self._learns)
        self.draw()
        self.gates.attach()

    @torch.no_grad()
    def draw(self) -> None:
        """For the step to come, where there are gates."""
        if self.gates is None:
            return
        generator = np.random.default_rng(derived_seed(self._seed, "channels", self.step))
        trained, judged = self._values(generator.random(len(self.gates.trained)))
        self.gates.trained.copy_(torch.as_tensor(trained))
        self.gates.judged.copy_(torch.as_tensor(judged))

    def close(self) -> None:
        if self.gates is not None:
            self.gates.detach()
        self.gates = None

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of a checkpoint."""
        return {}, {"next": self.step}

    def load(self, document: dict[str, Any]) -> None:
        """Before the step of a checkpoint, closed."""
        self.step = int(document["next"])
        self.close()
