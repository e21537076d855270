"""TensorBoard events of a training, into the folder of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.training.log.loggers import Described


def package() -> Any:
    """torch's writer. Raises ImportError where the tensorboard extra is not installed."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


class TensorBoard:
    run: str | None = None

    def __init__(self, training: Described, run: str | None = None) -> None:
        self._writer = package()(str(training.out / "tensorboard"))

    def scalars(self, figures: Mapping[str, float], epoch: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, ended: bool) -> None:
        self._writer.close()
