"""Training without any pressure to prune: the dense baseline."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.data import Split
from pipeline.training.census import Watched, census

CENSUS_BATCHES, CENSUS_BATCH_SIZE = 3, 512


@dataclass(frozen=True)
class Plain:
    anatomy: Watched
    train: Split

    def loss_term(self, step: int) -> Tensor | None:
        return None

    def after_step(self, step: int) -> None:
        return None

    def epoch_end(self, epoch: int, step: int) -> dict[str, Any]:
        return {}

    def end(self) -> dict[str, Tensor]:
        """Some channels of a dense network are dead too."""
        batches = itertools.islice(self.train.batches(CENSUS_BATCH_SIZE), CENSUS_BATCHES)
        return census(self.anatomy, (x for x, _ in batches))
