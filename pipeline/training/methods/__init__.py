"""What a training method adds to the loop: one file each, behind `Method`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from pipeline.training.state import TrainState


class Method(Protocol):
    """Hooks of one training; `step` counts from 0 over the whole training, `epoch` from 0."""

    def bind(self, state: TrainState) -> None:
        """Work on this network from now on: at the start, after a removal, after a restart."""

    def loss_term(self, step: int) -> Tensor | None:
        """A scalar to add to the cross entropy, with gradient."""

    def after_step(self, step: int, stepped: bool = True) -> None:
        """After the optimizer's step, gradients still there; may change parameters in place. With `stepped` False the
        optimizer made no step: gradients overflowed and are not to be used."""

    def due(self, step: int) -> bool:
        """Whether `removal` looks for dead channels after this step, which takes its time."""

    def removal(self, step: int) -> Mapping[str, Tensor] | None:
        """Where channels are to be removed after this step: watched output -> bool (channels,), True = dead; None
        where it is not `due`."""

    def pinned(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool mask of its shape: entries that `after_step` holds at what they are, so that channels
        which a gradient reaches there can be removed nevertheless."""

    def epoch_end(self, epoch: int, step: int) -> dict[str, Any]:
        """Figures for the history, JSON values; `step` is the epoch's last. The model is in training mode, and must be
        so afterwards."""

    def end(self) -> dict[str, Tensor]:
        """The final census: watched output -> bool (channels,), True = dead."""

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps of the method, beside what lies in the optimizer's state: tensors and plain JSON."""

    def restore(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; comes after `bind`."""
