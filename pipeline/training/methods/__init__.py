"""What a training method adds to the loop: one file each, behind `Method`."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Method(Protocol):
    """Hooks of one training; `step` counts from 0 over the whole training, `epoch` from 0."""

    def loss_term(self, step: int) -> Tensor | None:
        """A scalar to add to the cross entropy, with gradient."""

    def after_step(self, step: int) -> None:
        """After the optimizer's step; may change parameters in place."""

    def epoch_end(self, epoch: int, step: int) -> dict[str, Any]:
        """Figures for the history, JSON values; `step` is the epoch's last. The model is in training mode, and must be
        so afterwards."""

    def end(self) -> dict[str, Tensor]:
        """The final census: watched output -> bool (channels,), True = dead."""
