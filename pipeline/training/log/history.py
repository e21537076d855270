"""What a training has seen: losses, speed, removals and one row an epoch, in history.jsonl and to a watcher."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.training.state import Removal
from runtime.errors import UserError

WINDOW_STEPS = 50
"""Reading the loss waits for the device, so it is read only this often."""
FEW_STEPS = 10
"""The speeds around a removal are those of at least so many steps, where there are as many."""


class Watcher(Protocol):
    """Gets every row of the history as it is made."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def close(self, ended: bool = True) -> None: ...


@dataclass(frozen=True)
class Window:
    """Steps that were timed together, the device waited for before and after them."""

    steps: int
    images: int
    seconds: float


@dataclass
class History:
    """A window is a stretch of steps whose losses are read at once and whose speed is taken; it ends after
    WINDOW_STEPS, at the end of an epoch, and before the census of a removal. The first step of a training, of one that
    goes on, and after a removal is not timed: it may compile. Its loss counts."""

    path: Path | None
    """None in processes that do not write."""
    watcher: Watcher | None = None
    mean: Callable[[Tensor], Tensor] = lambda losses: losses
    """Over the processes that train together."""
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
    _compiles: bool = True  # the next step
    _untimed: int = 0  # steps of this window that came before its start
    _recent: list[Window] = field(default_factory=list)  # since the last removal, the last FEW_STEPS or little more
    _removals: list[Removal] = field(default_factory=list)  # of the next row
    _last: Removal | None = None  # until the speed after it is known
    _since: int = 0  # steps since the last removal, that which is not timed included

    def begin(self) -> None:
        """The next window starts now."""
        self._start = time.perf_counter()

    def step(self, loss: Tensor) -> None:
        """One step is done; `loss` stays on the device, which is waited for after a step that is not timed."""
        self._losses.append(loss)
        if self._compiles:
            loss.item()  # waits for the device
            self._compiles, self._untimed = False, len(self._losses)
            self.begin()

    @property
    def window_is_full(self) -> bool:
        return len(self._losses) >= WINDOW_STEPS

    def end_window(self, batch_size: int, epoch: int) -> None:
        """Wait for the device, read the losses, take the speed. Raises UserError where a loss is not finite."""
        if self._losses:
            values = self.mean(torch.stack(self._losses).double()).cpu()
            took, timed = time.perf_counter() - self._start, len(values) - self._untimed
            _demand_finite(values, epoch, self._steps)
            if timed:
                self._timed(Window(timed, timed * batch_size, took))
            self._window_loss = float(values.mean())
            self._loss_sum += float(values.sum())
            self._steps += len(values)
            self._since += len(values)
            self._losses, self._untimed = [], 0
            if self._since >= FEW_STEPS and self._recent:
                self._tell_last()

    def _timed(self, window: Window) -> None:
        self.images_per_s = window.images / window.seconds
        self._images += window.images
        self._seconds += window.seconds
        self._recent.append(window)
        while sum(w.steps for w in self._recent[1:]) >= FEW_STEPS:
            del self._recent[0]

    def _speed(self) -> tuple[float | None, float | None]:
        """Images/s and milliseconds of a step, over the steps of `_recent`."""
        if not self._recent:
            return None, None
        seconds = sum(w.seconds for w in self._recent)
        images, steps = sum(w.images for w in self._recent), sum(w.steps for w in self._recent)
        return images / seconds, 1e3 * seconds / steps

    def window_text(self) -> str:
        """Loss of the last window and the last speed taken, for the progress; "" before the first."""
        if self._window_loss is None:
            return ""
        speed = "" if self.images_per_s is None else f"  {self.images_per_s:,.0f} images/s"
        return f"  loss {self._window_loss:.3g}{speed}"

    def removed(self, removal: Removal) -> None:
        """Between two windows; the speed before it is that of the last of them."""
        self._tell_last()
        images_per_s, step_ms = self._speed()
        self._last = dataclasses.replace(removal, images_per_s_before=images_per_s, step_ms_before=step_ms)
        self._recent, self._since, self._compiles = [], 0, True

    def _tell_last(self) -> None:
        """The last removal goes into the next row, with the speed since then."""
        if self._last is not None:
            images_per_s, step_ms = self._speed()
            removal = dataclasses.replace(self._last, images_per_s_after=images_per_s, step_ms_after=step_ms)
            self._removals.append(removal)
            self._last = None

    def end_epoch(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The row of an epoch whose last window has ended, written; a removal that too few steps followed waits."""
        row = {
            "epoch": len(self.rows) + 1,
            "loss": self._loss_sum / max(1, self._steps),
            **figures,
            "seconds": self._seconds,
            "images_per_s": self._images / self._seconds if self._seconds else None,
            "removals": [r.document() for r in self._removals],
        }
        self._removals = []
        self._loss_sum, self._steps, self._images, self._seconds = 0.0, 0, 0, 0.0
        self.rows.append(row)
        self._write(row, "a")
        if self.watcher is not None:
            self.watcher.row(row)
        return row

    def end(self) -> None:
        """A removal that still waits goes into the last row."""
        self._tell_last()
        if self._removals and self.rows:
            self.rows[-1]["removals"] += [r.document() for r in self._removals]
            self._removals = []
            self.rewrite()
        if self.watcher is not None:
            self.watcher.close()

    def abandon(self) -> None:
        """The training ends before its end."""
        if self.watcher is not None:
            self.watcher.close(ended=False)

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
        removals = {
            "removals": [r.document() for r in self._removals],
            "last": None if self._last is None else self._last.document(),
            "since": self._since,
        }
        return {"rows": self.rows, **removals, **sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.rows = [dict(row) for row in state["rows"]]
        self._removals = [Removal(**r) for r in state["removals"]]
        self._last = None if state["last"] is None else Removal(**state["last"])
        self._since = int(state["since"])
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
