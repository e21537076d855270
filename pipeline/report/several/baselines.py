"""The section of a run's report on what something simpler would have done."""

from __future__ import annotations

from pathlib import Path

from pipeline.baselines.document import FOLDER, NAME, Baseline, read, sentence
from pipeline.check.results import Role
from pipeline.report.page import Block, Cell, Plots, Rows, Section, Table, Text, numbers
from pipeline.report.several.compare import Dot, frontier, pareto
from runtime.measure.conditions import complaints

KEY = (("is-dense", "dense, and what is simpler"), ("is-compact", "compact"))
TITLE = "Would something simpler have done"


def section(run: Path, check: str | None) -> Section | None:
    """`check`: digest of the run's check; None where no baselines were measured. UserError where they are damaged."""
    path = run / FOLDER / NAME
    if not path.is_file():
        return None
    document = read(path)
    if document.check != check:
        text = f"{FOLDER}/{NAME} was measured beside an earlier check: run `demport baselines` again."
        return Section(TITLE, [Text(text, "absent")])
    measured = [row for row in document.rows if row.measured]
    dots = {row.name: _dot(row) for row in measured}
    best = {dot.label for dot in frontier(list(dots.values()))}
    order = [row.name for row in measured]
    rows: Rows = [
        [
            f"{order.index(row.name) + 1}: {row.name}{' (best)' if row.name in best else ''}"
            if row.measured
            else row.name,
            Cell(row.what or ("" if row.measured else f"not measured: {row.reason}"), kind="wide"),
            str(row.epochs) if row.epochs else "",
            *_cells(row),
        ]
        for row in document.rows
    ]
    metric = document.metric.capitalize()
    heads = ("Network", "What it is", "Epochs", metric, "Against compact, points", "p50", "Times as fast as dense")
    place = f"ONNX Runtime on {document.environment.get('cpu')}, {document.threads} threads, batch {document.batch}"
    doubts = "".join(f"; doubtful: {doubt}" for doubt in complaints(document.conditions, settings=False))
    source = f"{FOLDER}/{NAME}. {place}, all timed in turn{doubts}; {document.images:,} test images, one seed."
    blocks: list[Block] = [
        Text(source, "source"),
        Text(sentence(document)),
        Plots([pareto(document.metric, list(dots.values()), "p50, % of dense", KEY)]),
        Table(heads, rows, (2, 3, 4, 5, 6)),
    ]
    return Section(TITLE, blocks, brief=True)


def _label(row: Baseline, order: list[str], best: set[str]) -> str:
    """With its number on the plot."""
    if row.measured is None:
        return row.name
    return f"{order.index(row.name) + 1}: {row.name}{' (best)' if row.name in best else ''}"


def _dot(row: Baseline) -> Dot:
    one = row.measured
    assert one is not None
    low, high = one.speedup_ci95
    role: Role = "compact" if row.name.startswith("compact") else "dense"
    return Dot(row.name, role, 100 / one.speedup, 100 * one.accuracy, None, (100 / high, 100 / low))


def _cells(row: Baseline) -> list[Cell | str]:
    one = row.measured
    if one is None:
        return ["", "", "", ""]
    against: Cell | str = ""
    if one.difference_pp is not None and one.ci95_pp is not None:
        against = Cell(f"{one.difference_pp:+.2f}", numbers.between(*one.ci95_pp), "number")
    faster = Cell(numbers.ratio(one.speedup), numbers.between(*one.speedup_ci95), "number")
    return [numbers.percent(one.accuracy), against, numbers.milliseconds(one.p50_ms), faster]
