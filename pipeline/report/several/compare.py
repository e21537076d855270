"""`demport report --compare RUN RUN...`: several runs on one plot of accuracy over latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.check.results import LatencyEntry, Role
from pipeline.report import glance
from pipeline.report.accuracy import interval
from pipeline.report.collect import Run, collect
from pipeline.report.page import Block, Cell, Page, Picture, Plots, Section, Table, Text, html, markdown, numbers
from pipeline.report.page.plots import COLOURS, NETWORKS, log_axis, picture
from runtime.errors import UserError
from runtime.files import write_text

HEADS = ("Network", "Accuracy", "p50", "Of its dense", "MACs", "ONNX file", "Verdict", "Not on the plot because")


@dataclass(frozen=True)
class Dot:
    """A network of a run: its latency on the plot's axis and its accuracy in percent, each with its 95 % interval where
    one is known."""

    label: str
    role: Role
    latency: float
    accuracy: float
    accuracy_interval: tuple[float, float] | None
    latency_interval: tuple[float, float] | None = None


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
    dot: Dot | None
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
    headline = glance.headline(first)
    if headline is None:
        raise UserError(f"{runs[0]}: no latency was measured", "a run that was checked", "run `demport check` on it")
    relative = len({source.report.models.dense.macs for source in sources.values()}) == 1
    rows = [row for name, source in sources.items() for row in _rows(name, source, first, headline, relative)]
    best = frontier([row.dot for row in rows if row.dot])
    shown = [row.dot for row in rows if row.dot]
    rows = [
        replace(row, best=row.dot in best, number=f"{shown.index(row.dot) + 1}: " if row.dot else "") for row in rows
    ]
    device = first.report.environment
    axis = "p50, % of the dense network of its run" if relative else "p50, ms"
    metric = first.report.metric_name
    what = f"Test {metric} over the p50 latency of {headline.name}, {_where(device)}."
    plot: Block = Text("No run has both figures.", "absent")
    if shown:
        plot = Plots([pareto(metric, shown, axis)])
    heads = [numbers.capital(metric) if head == "Accuracy" else head for head in HEADS]
    table = Table(heads, [_cells(row) for row in rows], (1, 2, 3, 4, 5))
    page = Page("Runs beside each other", "", "", [Text(what)], "", [Section("Runs", [plot, table], brief=True)])
    write_text(out, html(page))
    write_text(out.with_suffix(".md"), markdown(page))
    return Compared(out, out.with_suffix(".md"), tuple(rows))


def _cells(row: Row) -> list[Cell | str]:
    best, share = " (best)" if row.best else "", Cell(*row.share, kind="number") if row.share else ""
    name, verdict = f"{row.number}{row.run}, {row.role}{best}", Cell(row.verdict, kind=row.verdict)
    return [name, row.accuracy, row.p50, share, row.macs, row.size, verdict, Cell(row.reason, kind="wide")]


def _name(run: Path, runs: Sequence[Path]) -> str:
    """The folder's name, or its whole path where two are called alike."""
    alike = [other for other in runs if other.resolve().name == run.resolve().name]
    return run.resolve().name if len(alike) == 1 else str(run)


def _where(environment: Any) -> str:
    return f"on {environment.get('cpu')}, {environment.get('cores')} cores"


def _latency(figures: LatencyEntry, role: Role, relative: bool) -> tuple[float, tuple[float, float] | None]:
    """On the plot's axis, with its 95 % interval where it is a ratio."""
    timing, speedup = getattr(figures, role), figures.speedup
    if not relative or speedup is None:
        return float(timing.p50_ms), None
    low, high = speedup.ci95
    return (100.0, None) if role == "dense" else (100 / speedup.ratio, (100 / high, 100 / low))


def _share(same: Sequence[glance.Row], role: Role) -> tuple[str, str] | None:
    """Compact's p50 in percent of the dense one's, and the 95 % interval."""
    speedup = same[0].entry.speedup if same else None
    if role == "dense" or speedup is None:
        return None
    low, high = (100 / edge for edge in reversed(speedup.ci95))
    return f"{100 / speedup.ratio:.1f}{numbers.GAP}% of dense", numbers.between(low, high, 1)


def _rows(name: str, source: Run, first: Run, headline: glance.Row, relative: bool) -> list[Row]:
    report = source.report
    same = [
        row
        for row in glance.latency_rows(report)
        if (row.backend, row.precision, row.batch) == (headline.backend, headline.precision, headline.batch)
    ]
    elsewhere = report.environment.get("fingerprint") != first.report.environment.get("fingerprint")
    hop = glance.accuracy_form(report)
    rows = []
    roles: tuple[Role, Role] = ("dense", "compact")
    for role in roles:
        model, timing = getattr(report.models, role), getattr(same[0].entry, role) if same else None
        accuracy = model.accuracy.get(hop) if hop else None
        reason = (
            f"measured {_where(report.environment)}"
            if elsewhere
            else f"{headline.name} was not measured"
            if timing is None
            else f"{report.metric_name} was not measured"
            if accuracy is None
            else ""
        )
        edges = interval(report, model, hop) if hop else None
        percent = (100 * edges[0], 100 * edges[1]) if edges else None
        figure = numbers.percent(accuracy) + (f" {numbers.between(*percent, 1)}" if percent else "")
        dot = None
        if not reason and timing is not None and accuracy is not None:
            latency, spread = _latency(same[0].entry, role, relative)
            dot = Dot(f"{name}, {role}", role, latency, 100 * accuracy, percent, spread)
        rows.append(
            Row(
                name, role, figure, numbers.milliseconds(timing.p50_ms if timing else None),
                timing.p50_ms if timing else None, _share(same, role), numbers.short(model.macs),
                numbers.binary(model.bytes), report.verdict.status, dot, reason,
            )
        )  # fmt: skip
    return rows


def pareto(metric: str, dots: Sequence[Dot], axis: str, key: Sequence[tuple[str, str]] = NETWORKS) -> Picture:
    """The metric over latency; the line joins what nothing else beats in both. `key`: (CSS class, label)."""

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        best = frontier(dots)
        axes.plot([dot.latency for dot in best], [dot.accuracy for dot in best], color=COLOURS["line"], linewidth=1.2,
                  drawstyle="steps-post", zorder=1)  # fmt: skip
        together: dict[tuple[float, float], list[str]] = {}
        for number, dot in enumerate(dots, 1):
            colour, place = COLOURS[dot.role], (dot.latency, dot.accuracy)
            if dot.accuracy_interval:
                axes.plot([dot.latency] * 2, dot.accuracy_interval, color=colour, linewidth=1.2, alpha=0.6)
            if dot.latency_interval:
                axes.plot(dot.latency_interval, [dot.accuracy] * 2, color=colour, linewidth=1.2, alpha=0.6)
            axes.plot([place[0]], [place[1]], color=colour, marker="o", markersize=6, linestyle="none")
            together.setdefault(place, []).append(str(number))
        for place, labels in together.items():
            axes.annotate(", ".join(labels), place, textcoords="offset points", xytext=(6, 4), fontsize=9)
        times = [dot.latency for dot in dots]
        if max(times) > 4 * min(times):
            log_axis(axes, min(times) / 1.3, max(times) * 1.3)
        axes.set_xlabel(axis)
        axes.set_ylabel(f"test {metric}, %")

    over = f"{numbers.capital(metric)} over latency"
    alt = f"{over} of every run; numbers are those of the table."
    return picture(over, draw, height_in=3.6, alt=alt, key=key)


def frontier(dots: Sequence[Dot]) -> list[Dot]:
    """Those that no other is both faster than and at least as accurate as, the fastest first."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.latency, -dot.accuracy)):
        if not best or dot.accuracy > best[-1].accuracy:
            best.append(dot)
    return best
