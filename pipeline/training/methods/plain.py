"""Training without any pressure to prune: the dense baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.data import Split
from pipeline.training.census import Watched, census

BATCH = 512


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
        """Over the whole training split: some channels of a dense network are dead too."""
        return census(self.anatomy, (x for x, _ in self.train.batches(BATCH)))
