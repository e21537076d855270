"""`demport gate`: a run's report.json against figures that people accepted before, kept in a file per project.

The file holds, for each device fingerprint, the compact network's figures, and the rules that say how much worse is a
regression. A figure may get worse by `relative` times the baseline or by `absolute`, whichever is more; improving is
never a failure. Accuracy, size, parameters and MACs do not depend on the device and are judged everywhere. Latency
and the speedup count only on a device with the same fingerprint; elsewhere they are not comparable, which is
inconclusive, unless the rules say that ratios hold on any device (`ratios_on`): then the speedup and the ratio to a
reference model, both measured in one job, are judged everywhere. How a run is judged: judging.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import UserError
from runtime.figures import (
    Report,
    by_measurement,
    demand_report,
    doubts_of,
    figures_of,
    handover_of,
    intervals_of,
    scatter_of,
)
from runtime.files import read_bounded

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_MAX_BYTES = 4 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Rule(_Part):
    """What a figure may lose against the baseline: the larger of `relative` x baseline and `absolute` (in its unit)."""

    relative: Amount = 0.0
    absolute: Amount = 0.0


class Rules(_Part):
    """One rule for each kind of figure; null leaves that kind out."""

    accuracy: Rule | None = Rule(absolute=0.005)
    params: Rule | None = Rule(relative=0.01)
    macs: Rule | None = Rule(relative=0.01)
    bytes: Rule | None = Rule(relative=0.02, absolute=4096)
    speedup: Rule | None = Rule(relative=0.05, absolute=0.05)
    reference: Rule | None = Rule(relative=0.05, absolute=0.05)
    p50_ms: Rule | None = Rule(relative=0.10, absolute=0.05)
    ratios_on: Literal["same device", "any device"] = "same device"
    least_ms: Amount = 0.02
    """A ratio is worse only where compact lost at least this much a launch: the ratio of two networks that take some
    hundredths of a millisecond differs by a fifth from one process to the next."""
    decided: Literal["gated", "all"] = "gated"
    """Which figures of speed must be decided: those that the run's own gates look at, or all. The others, which are
    measured for a shorter time, fail where they are shown to be worse and pass where that cannot be told."""
    limits: dict[str, Figure] = {}
    """Figure by name -> the worst it may ever be, whatever the baseline: so that many small losses do not add up."""


class Device(_Part):
    """Figures of the compact network, by name (`figures_of`), measured on one kind of machine."""

    environment: dict[str, Any]
    figures: dict[str, Figure]
    intervals: dict[str, Annotated[list[Positive], Field(min_length=2, max_length=2)]] = {}
    """95 %, of the ratios of speed; one that is not here is taken to be exact."""
    reference_sha256: str | None = None
    """Of the model that `reference` is the ratio to."""
    doubts: dict[str, list[str]] = {}
    """By measurement (`measured_as`), what disturbed the machine meanwhile."""
    scattered: dict[str, list[str]] = {}
    """By measurement, which networks' launches scattered (`conditions.scatter`)."""
    handover_us: dict[str, Positive] = {}
    """By measurement on several threads, how long the cores took to hand each other data (`runtime.handover`)."""


class Baseline(_Part):
    """The file. `name` is the run's; a baseline of another run is refused."""

    kind: Literal["demport baseline"] = "demport baseline"
    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    rules: Rules = Rules()
    devices: dict[str, Device]

    def text(self) -> str:
        """The file's content: sorted, indented, so that a change reads well in a review."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_baseline(path: Path) -> Baseline:
    """UserError for a file that is missing, too large, no JSON, or no baseline of ours."""
    expected, remedy = "a baseline that `demport gate --update` wrote", "check the path, or write it with --update"
    try:
        document = json.loads(read_bounded(path, _MAX_BYTES).decode(), parse_constant=_refuse)
        return Baseline.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}", expected, remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: {reason}", expected, remedy) from error


def updated(report: Report, baseline: Baseline | None) -> Baseline:
    """The baseline with the report's figures for its device; rules and other devices stay. UserError after a failed
    run."""
    demand_report(report)
    if report["verdict"]["status"] == "fail":
        names = ", ".join(gate["name"] for gate in report["verdict"]["gates"] if gate["status"] == "fail")
        raise UserError(f"the run failed {names}", "a run that does not fail", "mend it before it becomes the baseline")
    if baseline is not None:
        demand_same_name(report, baseline)
    kept = {} if baseline is None else dict(baseline.devices)
    environment = dict(report["environment"])
    sha256 = (report.get("reference") or {}).get("sha256")
    figures = figures_of(report)
    kept[environment["fingerprint"]] = Device(
        environment=environment,
        figures=figures,
        intervals=intervals_of(report),
        reference_sha256=sha256,
        doubts=by_measurement(doubts_of, report),
        scattered=by_measurement(scatter_of, report),
        handover_us=by_measurement(handover_of, report),
    )
    rules = Rules() if baseline is None else baseline.rules
    return Baseline(schema=1, name=report["name"], rules=rules, devices=kept)


def demand_same_name(report: Report, baseline: Baseline) -> None:
    if report["name"] != baseline.name:
        raise UserError(
            f"the baseline is of {baseline.name!r}, the run of {report['name']!r}",
            "a baseline of the same run",
            "give its own baseline file, or write one with --update",
        )


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no figure")
