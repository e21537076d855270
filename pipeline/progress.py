"""Live progress on stderr: what runs, how far it is, what it found, and the time left.

A stage calls `start`, then `update` as often as it likes, `note` for a line that stays, and `stop`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TextIO

from runtime.errors import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 5.0


class Progress(Protocol):
    def start(self, stage: str, total: float) -> None:
        """A stage of `total` units (> 0; epochs, engines, ...) begins; one that still runs ends."""

    def resume(self, done: int) -> None:
        """An earlier run brought the stage to `done`; the time left is told from here on."""

    def update(self, done: float, text: str = "") -> None:
        """`done` of `total` units are behind us; `text` says what was found, e.g. "accuracy 97.2 %"."""

    def note(self, text: str) -> None:
        """A line that stays on the screen."""

    def stop(self) -> None:
        """The stage is over; without a stage, nothing happens."""


def open_progress(stream: TextIO | None = None) -> Progress:
    """Bars where `stream` (default: stderr) is a terminal, plain lines elsewhere."""
    stream = sys.stderr if stream is None else stream
    return RichProgress(stream) if stream.isatty() else PlainProgress(stream)


class Silent:
    """Says nothing."""

    def start(self, stage: str, total: float) -> None:
        pass

    def resume(self, done: int) -> None:
        pass

    def update(self, done: float, text: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def stop(self) -> None:
        pass


class PlainProgress:
    """One line at the start, at most one every `interval_s` seconds between, one at the end."""

    def __init__(
        self, stream: TextIO, interval_s: float = PLAIN_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._interval_s, self._clock = stream, interval_s, clock
        self._stage: str | None = None
        self._total, self._before, self._done, self._text = 1.0, 0.0, 0.0, ""
        self._started = self._shown = 0.0

    def start(self, stage: str, total: float) -> None:
        assert total > 0, total
        self.stop()
        self._stage, self._total, self._before, self._done, self._text = stage, total, 0.0, 0.0, ""
        self._started = self._shown = self._clock()
        self.note(stage)

    def resume(self, done: int) -> None:
        self._before = self._done = float(done)
        self._started = self._clock()

    def update(self, done: float, text: str = "") -> None:
        self._done, self._text = done, text or self._text
        now = self._clock()
        if self._stage is None or now - self._shown < self._interval_s:
            return
        self._shown = now
        remaining_s = time_left_s(now - self._started, done - self._before, self._total - self._before)
        parts = [f"{self._stage} {100 * done / self._total:.0f} %", self._text, f"{clock_text(remaining_s)} left"]
        self.note("  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        self._stream.write(f"{plain(text)}\n")
        self._stream.flush()

    def stop(self) -> None:
        if self._stage is None:
            return
        whole = self._done >= self._total
        outcome = "done" if whole else f"stopped at {100 * self._done / self._total:.0f} %"
        took = clock_text(self._clock() - self._started)
        self.note("  ".join(part for part in (f"{self._stage} {outcome}", self._text, f"in {took}") if part))
        self._stage = None


class RichProgress:
    """A bar per stage, drawn by rich, and what was found beneath it; finished bars stay above the running one."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._bars: RichBars | None = None
        self._task: TaskID | None = None

    def start(self, stage: str, total: float) -> None:
        assert total > 0, total
        self.stop()
        self._bars = _bars(self._console)
        self._task = self._bars.add_task(stage, total=total, text="")
        self._bars.start()

    def resume(self, done: int) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.reset(self._task, completed=done)  # a mere update would count as speed

    def update(self, done: float, text: str = "") -> None:
        if self._bars is None or self._task is None:
            return
        self._bars.update(self._task, completed=done)
        if text:
            self._bars.update(self._task, text=plain(text))

    def note(self, text: str) -> None:
        self._console.print(plain(text), markup=False, highlight=False)

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None


def _bars(console: Console) -> RichBars:
    from rich import progress
    from rich.console import RenderableType
    from rich.text import Text

    class Bars(progress.Progress):
        """What was found has a line of its own: beside the bar it would leave no room for it."""

        def get_renderables(self) -> Iterable[RenderableType]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                if task.fields["text"]:
                    yield Text(f"  {task.fields['text']}")

    return Bars(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
    )


def time_left_s(elapsed_s: float, done: float, total: float) -> float | None:
    """Seconds left if the rest goes as the part done did; None while nothing is done."""
    return elapsed_s * max(total - done, 0.0) / done if done > 0 else None


def clock_text(seconds: float | None) -> str:
    """65.2 -> "1:05"; None -> "?:??"."""
    if seconds is None:
        return "?:??"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
