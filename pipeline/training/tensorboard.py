"""TensorBoard events of a training: every figure of the history's rows, at the number of its epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import UserError


class TensorBoard:
    """Writes into `folder`. Raises UserError where the tensorboard extra is not installed."""

    def __init__(self, folder: Path) -> None:
        self._writer = summary_writer()(str(folder))

    def row(self, row: Mapping[str, Any]) -> None:
        """Scalars under their names; what is told by layer as `dead_by_layer/conv1` and so on."""
        epoch = int(row["epoch"])
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def summary_writer() -> Any:
    """torch's class. Raises UserError where the tensorboard extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"tensorboard is asked for and cannot be imported ({error})",
            "the tensorboard extra",
            "pip install tensorboard, or set tensorboard: false",
        ) from None
    return SummaryWriter


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Name -> value of every number in a row; those of a table by layer as `table/layer`; `removed` in all."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{layer}": float(count) for layer, count in value.items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
            found[name] = float(value)
    return found | {"removed": float(sum(r["channels"] for r in row.get("removals", ())))}
