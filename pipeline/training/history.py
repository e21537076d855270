"""What a training has seen: losses, speed, removals and one row an epoch, in history.jsonl and to a watcher."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.training.state import Removal
from runtime.errors import UserError

WINDOW_STEPS = 50
"""Reading the loss waits for the device, so it is read only this often."""


class Watcher(Protocol):
    """Gets every row of the history as it is made."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclass
class History:
    """A window is a stretch of steps whose losses are read at once and whose speed is taken; it ends after
    WINDOW_STEPS, at the end of an epoch, and before a removal."""

    path: Path | None
    """None in processes that do not write."""
    watcher: Watcher | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    images_per_s: float | None = None
    """Of the last window."""
    _window_loss: float | None = None
    _losses: list[Tensor] = field(default_factory=list)
    _loss_sum: float = 0.0
    _steps: int = 0
    _images: int = 0
    _seconds: float = 0.0
    _start: float = 0.0
    _removals: list[Removal] = field(default_factory=list)

    def begin(self) -> None:
        """The next window starts now."""
        self._start = time.perf_counter()

    def step(self, loss: Tensor) -> None:
        """One step is done; `loss` stays on the device."""
        self._losses.append(loss)

    @property
    def window_is_full(self) -> bool:
        return len(self._losses) >= WINDOW_STEPS

    def end_window(self, batch_size: int, epoch: int) -> None:
        """Wait for the device, read the losses, take the speed. Raises UserError where a loss is not finite."""
        if self._losses:
            values = torch.stack(self._losses).double().cpu()
            _demand_finite(values, epoch, self._steps)
            took = time.perf_counter() - self._start
            images = len(values) * batch_size
            self.images_per_s = images / took
            self._removals = [
                r if r.images_per_s_after is not None else dataclasses.replace(r, images_per_s_after=self.images_per_s)
                for r in self._removals
            ]
            self._window_loss = float(values.mean())
            self._loss_sum += float(values.sum())
            self._steps += len(values)
            self._images += images
            self._seconds += took
            self._losses = []
        self.begin()

    def window_text(self) -> str:
        """Loss and speed of the last window, for the progress; "" before the first."""
        if self._window_loss is None or self.images_per_s is None:
            return ""
        return f"  loss {self._window_loss:.3g}  {self.images_per_s:,.0f} images/s"

    def removed(self, removal: Removal) -> None:
        self._removals.append(removal)

    def end_epoch(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The row of an epoch whose last window has ended, written; removals without a speed after them wait."""
        told = [r for r in self._removals if r.images_per_s_after is not None]
        row = {
            "epoch": len(self.rows) + 1,
            "loss": self._loss_sum / max(1, self._steps),
            **figures,
            "seconds": self._seconds,
            "images_per_s": self._images / self._seconds if self._seconds else None,
            "removals": [r.document() for r in told],
        }
        self._removals = [r for r in self._removals if r.images_per_s_after is None]
        self._loss_sum, self._steps, self._images, self._seconds = 0.0, 0, 0, 0.0
        self.rows.append(row)
        self._write(row, "a")
        if self.watcher is not None:
            self.watcher.row(row)
        return row

    def end(self) -> None:
        """Removals after which no step came go into the last row."""
        if self._removals and self.rows:
            self.rows[-1]["removals"] += [r.document() for r in self._removals]
            self._removals = []
            self.rewrite()
        if self.watcher is not None:
            self.watcher.close()

    def rewrite(self) -> None:
        """history.jsonl anew from all rows."""
        if self.path is not None:
            self.path.write_text("", encoding="utf-8")
            for row in self.rows:
                self._write(row, "a")

    def state(self) -> dict[str, Any]:
        """Plain JSON, between two windows."""
        assert not self._losses, "the window has ended"
        sums = {"loss_sum": self._loss_sum, "steps": self._steps, "images": self._images, "seconds": self._seconds}
        return {"rows": self.rows, "removals": [r.document() for r in self._removals], **sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.rows = [dict(row) for row in state["rows"]]
        self._removals = [Removal(**r) for r in state["removals"]]
        self._loss_sum, self._steps = float(state["loss_sum"]), int(state["steps"])
        self._images, self._seconds = int(state["images"]), float(state["seconds"])
        self.rewrite()
        for row in self.rows:
            if self.watcher is not None:
                self.watcher.row(row)

    def _write(self, row: Mapping[str, Any], mode: str) -> None:
        if self.path is not None:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")


def _demand_finite(values: Tensor, epoch: int, before: int) -> None:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        step = before + int(bad.to(torch.uint8).argmax())
        raise UserError(
            f"the loss is {float(values[bad][0])} in epoch {epoch + 1}, step {step + 1}",
            "a finite loss",
            "lower lr (or lambda_peak), or look for extreme pixels in the data",
        )
