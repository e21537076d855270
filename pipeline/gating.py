"""`demport gate`: a run's report against a baseline file, for CI."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import rendering
from pipeline.files import write_text
from pipeline.workspace import CONFIG
from runtime import gate_output
from runtime.baseline import Baseline, read_baseline, updated
from runtime.errors import UserError
from runtime.files import read_json
from runtime.judging import judge

REPORT = "report.json"


@dataclass(frozen=True)
class Request:
    """`junit` and `summary` are files to write the verdict to, as JUnit XML and as Markdown. An update asks `accept`,
    which is shown the figures that change."""

    run: Path
    baseline: Path
    update: bool = False
    junit: Path | None = None
    summary: Path | None = None
    accept: Callable[[list[str]], bool] = lambda changes: True


def gate(request: Request) -> dict[str, Any]:
    """The JSON document: `status` pass, fail, inconclusive or updated, and `gates[]`. Raises UserError.

    With `update` the report's figures become the baseline of this device, and nothing is judged.
    """
    report = _report(request.run)
    if request.update:
        known = read_baseline(request.baseline) if request.baseline.exists() else None
        new = updated(report, known)
        device = report["environment"]["fingerprint"]
        doubtful = [f"doubtful: {where}: {', '.join(why)}" for where, why in new.devices[device].doubts.items()]
        changed = [*doubtful, *changes(known, new, device)]
        if not request.accept(changed):
            raise UserError("the figures were not accepted", "a yes", f"{request.baseline} is as it was")
        _write(request.baseline, new.text())
        return {"status": "updated", "baseline": str(request.baseline), "gates": []}
    verdict = judge(report, read_baseline(request.baseline))
    if request.junit is not None:
        _write(request.junit, gate_output.junit(verdict, report["name"]))
    if request.summary is not None:
        _write(request.summary, gate_output.summary(verdict, report["name"]))
    gates = [dataclasses.asdict(one) for one in verdict.gates]
    return {"status": verdict.status, "baseline": str(request.baseline), "gates": gates}


def changes(before: Baseline | None, after: Baseline, device: str) -> list[str]:
    """`speedup.onnxruntime.fp32.b32: 3.93 -> 3.85` for every figure of the device that the update changes."""
    old = before.devices[device].figures if before and device in before.devices else {}
    new = after.devices[device].figures
    return [
        f"{name}: {f'{old[name]:g}' if name in old else 'new'} -> {f'{new[name]:g}' if name in new else 'gone'}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _report(run: Path) -> dict[str, Any]:
    """report.json of a run folder, which may hold nothing else."""
    path = run / REPORT
    if (run / CONFIG).is_file() and not rendering.is_current(run):
        raise UserError(f"{path} is not of the stages beside it", "a report of them", f"run `demport report {run}`")
    try:
        report = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: {reason}", "the report of a run", "make one with `demport run`") from error
    if not isinstance(report, dict):
        raise UserError(f"{path}: not an object", "the report of a run", "make one with `demport run`")
    return report


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "a file to write to", "choose another path") from error
