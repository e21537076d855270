"""What a preflight is asked about, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.engines.triton_images import TritonImage
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS

Status = Literal["ok", "wrong machine", "unknown"]
Image = TritonImage


@dataclass(frozen=True)
class Preflight:
    """Whether the machine can load an engine, why not or why that is not known, and what to build instead.

    `rebuild` is a command, None where nothing needs to be rebuilt or nobody knows how.
    """

    engine: Path
    machine: str
    status: Status
    reasons: tuple[str, ...]
    rebuild: str | None

    @property
    def exit_code(self) -> int:
        return {"ok": EXIT_PASS, "wrong machine": EXIT_GATE_FAILED, "unknown": EXIT_INCONCLUSIVE}[self.status]

    def document(self) -> dict[str, Any]:
        return {**vars(self), "engine": str(self.engine), "reasons": list(self.reasons)}
