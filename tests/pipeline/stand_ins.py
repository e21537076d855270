"""What stands for the stages of the line where only their order and their records are tested."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.workspace.folder import STAGES
from tests.pipeline.report.check_document import check

LINE = STAGES[:-1]
DENSE, DEMP, SURGERY, ONNX, SIMPLIFY, PRECISION, ENGINE, CHECK = LINE


@dataclass(frozen=True)
class Small:
    path: Path


class Stage:
    """Stands for a stage's function: counts its calls and writes a file that differs from call to call."""

    def __init__(self, name: str, status: str = "pass") -> None:
        self.name, self.calls, self.status = name, 0, status

    def __call__(self, *arguments: Any) -> Small:
        out: Path = next(a for a in arguments if isinstance(a, Path))  # a training gets a second one, for checkpoints
        self.calls += 1
        (out / "file").write_text(f"{self.name} {self.calls} {os.urandom(8).hex()}")
        if self.name == CHECK:
            verdict = {"status": self.status, "gates": []}
            (out / "check.json").write_text(json.dumps({**check(), "verdict": verdict}))
        return Small(out / "file")
