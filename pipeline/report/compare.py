"""`demport report --compare RUN RUN...`: several runs on one plot of accuracy over latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.files import write_text
from runtime.errors import UserError

from . import numbers, speed_plots, view
from .collect import collect
from .plots import Role
from .render import HERE, environment
from .speed_schema import Latency


@dataclass(frozen=True)
class Row:
    """A network of a run; `dot` is None where it cannot be on the plot, and `reason` says why."""

    run: str
    role: Role
    accuracy: str
    p50: str
    p50_ms: float | None
    share: tuple[str, str] | None
    macs: str
    size: str
    verdict: str
    dot: speed_plots.Dot | None
    reason: str = ""
    best: bool = False
    number: str = ""


@dataclass(frozen=True)
class Compared:
    """The two files written, and the rows in them."""

    html: Path
    markdown: Path
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """For the command's last line."""
        rows = [
            {
                "run": row.run,
                "role": row.role,
                "accuracy_pct": row.dot.accuracy if row.dot else None,
                "p50_ms": row.p50_ms,
                "best": row.best,
                "reason": row.reason or None,
            }
            for row in self.rows
        ]
        return {"status": "done", "report": str(self.html), "networks": rows}


def compare(runs: Sequence[Path], out: Path) -> Compared:
    """Write `out` (HTML) and the same as Markdown beside it. Raises UserError where a folder is no run.

    Latency is that of the comparison that stands for the first run, which has to have one; a run measured on another
    device, or not so, is in the table only. Where all runs have the same dense network, the plot shows latency in
    percent of the dense one timed in turn with it: a machine that was slower in one of the runs does not matter then.
    """
    sources = {_name(run, runs): collect(run) for run in runs}
    first = next(iter(sources.values()))
    headline = view.headline_latency(first)
    if headline is None:
        raise UserError(f"{runs[0]}: no latency was measured", "a run that was checked", "run `demport check` on it")
    relative = len({source.report.models.dense.macs for source in sources.values()}) == 1
    rows = [row for name, source in sources.items() for row in _rows(name, source, first, headline, relative)]
    best = speed_plots.frontier([row.dot for row in rows if row.dot])
    shown = [row.dot for row in rows if row.dot]
    rows = [
        replace(row, best=row.dot in best, number=f"{shown.index(row.dot) + 1}: " if row.dot else "") for row in rows
    ]
    device = first.report.environment
    axis = "p50, % of the dense network of its run" if relative else "p50, ms"
    content = {
        "css": Markup((HERE / "report.css").read_text("utf-8")),
        "what": f"Test accuracy over the p50 latency of {headline.name}, {_where(device)}.",
        "plot": speed_plots.pareto(shown, axis) if shown else None,
        "rows": rows,
    }
    pages, markdown = environment(), out.with_suffix(".md")
    write_text(out, pages.get_template("compare.html.j2").render(content))
    write_text(markdown, pages.get_template("compare.md.j2").render(content))
    return Compared(out, markdown, tuple(rows))


def _name(run: Path, runs: Sequence[Path]) -> str:
    """The folder's name, or its whole path where two are called alike."""
    alike = [other for other in runs if other.resolve().name == run.resolve().name]
    return run.resolve().name if len(alike) == 1 else str(run)


def _where(environment: Any) -> str:
    return f"on {environment.get('cpu')}, {environment.get('cores')} cores"


def _latency(figures: Latency, role: Role, relative: bool) -> tuple[float, tuple[float, float] | None]:
    """On the plot's axis, with its 95 % interval where it is a ratio."""
    timing, speedup = getattr(figures, role), figures.speedup
    if not relative or speedup is None:
        return float(timing.p50_ms), None
    low, high = speedup.ci95
    return (100.0, None) if role == "dense" else (100 / speedup.ratio, (100 / high, 100 / low))


def _share(same: Sequence[view.LatencyRow], role: Role) -> tuple[str, str] | None:
    """Compact's p50 in percent of the dense one's, and the 95 % interval."""
    speedup = same[0].figures.speedup if same else None
    if role == "dense" or speedup is None:
        return None
    low, high = (100 / edge for edge in reversed(speedup.ci95))
    return f"{100 / speedup.ratio:.1f}{numbers.GAP}% of dense", numbers.between(low, high, 1)


def _rows(name: str, source: view.Source, first: view.Source, headline: view.LatencyRow, relative: bool) -> list[Row]:
    report = source.report
    same = [
        row
        for row in view.latency_rows(report)
        if (row.backend, row.precision, row.batch) == (headline.backend, headline.precision, headline.batch)
    ]
    elsewhere = report.environment.get("fingerprint") != first.report.environment.get("fingerprint")
    hop = view.headline_accuracy(report)
    rows = []
    roles: tuple[Role, Role] = ("dense", "compact")
    for role in roles:
        model, timing = getattr(report.models, role), getattr(same[0].figures, role) if same else None
        accuracy = model.accuracy.get(hop) if hop else None
        reason = (
            f"measured {_where(report.environment)}"
            if elsewhere
            else f"{headline.name} was not measured"
            if timing is None
            else "accuracy was not measured"
            if accuracy is None
            else ""
        )
        interval = view.wilson(report, accuracy) if accuracy is not None else None
        percent = (100 * interval[0], 100 * interval[1]) if interval else None
        told = numbers.percent(accuracy) + (f" {numbers.between(*percent, 1)}" if percent else "")
        dot = None
        if not reason and timing is not None and accuracy is not None:
            latency, spread = _latency(same[0].figures, role, relative)
            dot = speed_plots.Dot(f"{name}, {role}", role, latency, 100 * accuracy, percent, spread)
        rows.append(
            Row(
                name, role, told, numbers.milliseconds(timing.p50_ms if timing else None),
                timing.p50_ms if timing else None, _share(same, role), numbers.short(model.macs),
                numbers.binary(model.bytes), report.verdict.status, dot, reason,
            )
        )  # fmt: skip
    return rows
