"""Training without any pressure to prune: the dense baseline."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.data import Split
from pipeline.training.census import census
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.state import TrainState

CENSUS_BATCHES, CENSUS_BATCH_SIZE = 3, 512


class Plain:
    def __init__(self, train: Split, ranks: Ranks = ALONE) -> None:
        self._train, self._ranks = train, ranks

    def bind(self, state: TrainState) -> None:
        self._anatomy = state.anatomy

    def loss_term(self, step: int) -> Tensor | None:
        return None

    def after_step(self, step: int, stepped: bool = True) -> None:
        return None

    def due(self, step: int) -> bool:
        return False

    def removal(self, step: int) -> Mapping[str, Tensor] | None:
        return None

    def pinned(self) -> Mapping[str, Tensor]:
        return {}

    def epoch_end(self, epoch: int, step: int) -> dict[str, Any]:
        return {}

    def end(self) -> dict[str, Tensor]:
        """Some channels of a dense network are dead too."""
        batches = itertools.islice(self._train.batches(CENSUS_BATCH_SIZE, part=self._ranks.part), CENSUS_BATCHES)
        return census(self._anatomy, (x for x, _ in batches), self._ranks)

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        return None
