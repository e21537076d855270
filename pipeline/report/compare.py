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


@dataclass(frozen=True)
class Row:
    """A network of a run; `dot` is None where it cannot be on the plot, and `reason` says why."""

    run: str
    role: Role
    accuracy: str
    p50: str
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
                "p50_ms": row.dot.ms if row.dot else None,
                "best": row.best,
                "reason": row.reason or None,
            }
            for row in self.rows
        ]
        return {"status": "done", "report": str(self.html), "networks": rows}


def compare(runs: Sequence[Path], out: Path) -> Compared:
    """Write `out` (HTML) and the same as Markdown beside it. Raises UserError where a folder is no run.

    Latency is that of the comparison that stands for the first run, which has to have one; a run measured on another
    device, or not so, is in the table only.
    """
    sources = {_name(run, runs): collect(run) for run in runs}
    first = next(iter(sources.values()))
    headline = view.headline_latency(first)
    if headline is None:
        raise UserError(f"{runs[0]}: no latency was measured", "a run that was checked", "run `demport check` on it")
    rows = [row for name, source in sources.items() for row in _rows(name, source, first, headline)]
    best = speed_plots.frontier([row.dot for row in rows if row.dot])
    shown = [row.dot for row in rows if row.dot]
    rows = [
        replace(row, best=row.dot in best, number=f"{shown.index(row.dot) + 1}: " if row.dot else "") for row in rows
    ]
    device = first.report.environment
    content = {
        "css": Markup((HERE / "report.css").read_text("utf-8")),
        "what": f"Test accuracy over the p50 latency of {headline.name}, {_where(device)}.",
        "plot": speed_plots.pareto(shown) if shown else None,
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


def _rows(name: str, source: view.Source, first: view.Source, headline: view.LatencyRow) -> list[Row]:
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
            dot = speed_plots.Dot(f"{name}, {role}", role, timing.p50_ms, 100 * accuracy, percent)
        rows.append(
            Row(
                name, role, told, numbers.milliseconds(timing.p50_ms if timing else None), numbers.short(model.macs),
                numbers.binary(model.bytes), report.verdict.status, dot, reason,
            )
        )  # fmt: skip
    return rows
