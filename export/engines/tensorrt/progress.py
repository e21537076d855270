"""How far the builder is: TensorRT's nested phases as one fraction."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from export.engines import Report


@dataclass
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Phases run inside a step of their parent, several threads at once; a fraction never falls."""

    def __init__(self) -> None:
        self._phases: list[_Phase] = []
        self._lock = threading.Lock()
        self.fraction = 0.0
        self.text = ""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases.append(_Phase(name, parent, max(steps, 1)))
            self.text = name

    def step(self, name: str, step: int) -> None:
        """Step number `step` (from 0) of the phase is complete."""
        with self._lock:
            for phase in reversed(self._phases):
                if phase.name == name:
                    phase.done = max(phase.done, min(step + 1, phase.steps))
                    break
            self._settle()

    def finish(self, name: str) -> None:
        with self._lock:
            for number in range(len(self._phases) - 1, -1, -1):
                if self._phases[number].name == name:
                    whole = self._phases.pop(number).parent is None and not self._phases
                    self.fraction = 1.0 if whole else self.fraction
                    break

    def _settle(self) -> None:
        """A phase's share is one step of its parent's; phases side by side are not added up, the furthest counts."""
        for phase in self._phases:
            share, low, walked = 1.0, 0.0, phase
            chain = [walked]
            while (above := self._named(walked.parent)) is not None and above not in chain:
                chain.append(above)
                walked = above
            for link in reversed(chain):
                low += share * link.done / link.steps
                share /= link.steps
            self.fraction = max(self.fraction, min(low, 1.0))

    def _named(self, name: str | None) -> _Phase | None:
        return next((phase for phase in reversed(self._phases) if phase.name == name), None)


def monitor(trt: Any, report: Report) -> Any:
    """A progress monitor that calls `report` whenever fraction or phase move visibly. It must not raise into the
    builder: once the other end of `report` is gone, it is silent."""
    phases = Phases()
    shown = (-1.0, "")

    def show() -> None:
        nonlocal shown
        if phases.fraction - shown[0] < 0.005 and phases.text == shown[1]:
            return
        shown = phases.fraction, phases.text
        try:
            report(round(phases.fraction, 4), phases.text)
        except (OSError, ValueError):
            return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)
            show()

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            show()
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)
            show()

    return Monitor()
