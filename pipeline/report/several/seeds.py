"""`demport run --seeds`: what several seeds of one config came to, as a mean with its spread, and each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.check.results import CheckDocument, read
from pipeline.report.page import Cell, Page, Rows, Section, Table, Text, html, markdown, numbers
from pipeline.workspace.stages import LAST
from runtime.files import write_json, write_text

RULE = "pass where every seed passes, fail where one fails, else inconclusive"
FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "dense_accuracy": ("{metric} of dense", lambda x: f"{100 * x:.2f}{numbers.GAP}%"),
    "compact_accuracy": ("{metric} of compact", lambda x: f"{100 * x:.2f}{numbers.GAP}%"),
    "difference_pp": ("Change, points", lambda x: f"{x:+.2f}"),
    "speedup": ("Times as fast, ONNX Runtime fp32, batch {batch}", lambda x: f"{x:.2f}x"),
    "macs_share": ("MACs of dense's", lambda x: f"{100 * x:.1f}{numbers.GAP}%"),
    "bytes_share": ("ONNX file of dense's", lambda x: f"{100 * x:.1f}{numbers.GAP}%"),
}
"""Key -> what it is, and how it is written."""


@dataclass(frozen=True)
class Spread:
    """Of a figure over the seeds; `sd` with n - 1, None of one seed."""

    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What `seeds.json` holds: each seed's figures and verdict by its number, and the spread of each figure."""

    status: str
    rule: str
    metric: str
    gate_batch: int
    seeds: dict[str, dict[str, Any]]
    figures: dict[str, Spread]


def summary_of(runs: Mapping[int, Path], gate_batch: int) -> Summary:
    """Of finished runs by their seeds. Raises UserError where a check cannot be read."""
    checks = {seed: read(run / LAST / "check.json") for seed, run in runs.items()}
    figures = {seed: _figures(check, gate_batch) for seed, check in checks.items()}
    seeds = {
        str(seed): {"run": str(runs[seed]), "status": check.verdict.status, **figures[seed]}
        for seed, check in checks.items()
    }
    spreads = {key: spread_of([one[key] for one in figures.values()]) for key in FIGURES}
    metric = next(iter(checks.values())).metric_name
    return Summary(
        verdict([check.verdict.status for check in checks.values()]), RULE, metric, gate_batch, seeds, spreads
    )


def _figures(check: CheckDocument, gate_batch: int) -> dict[str, float]:
    dense, compact = check.models.dense, check.models.compact
    gated = check.latency["onnxruntime"]["fp32"][f"b{gate_batch}"].speedup
    before, after = dense.accuracy["torch"], compact.accuracy["torch"]
    assert gated is not None and before is not None and after is not None, "the check gates them"
    return {
        "dense_accuracy": before,
        "compact_accuracy": after,
        "difference_pp": check.accuracy_difference.difference_pp,
        "speedup": gated.ratio,
        "macs_share": compact.macs / max(dense.macs, 1),
        "bytes_share": compact.bytes / dense.bytes,
    }


def spread_of(values: Sequence[float]) -> Spread:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, min(values), max(values))


def verdict(statuses: Sequence[str]) -> str:
    """By RULE."""
    if "fail" in statuses:
        return "fail"
    return "pass" if set(statuses) == {"pass"} else "inconclusive"


def write(summary: Summary, out: Path, name: str) -> Path:
    """`out`/seeds.json, .md and .html; the page."""
    write_json(out / "seeds.json", {"schema": 1, **asdict(summary)})
    page = _page(summary, name)
    write_text(out / "seeds.md", markdown(page))
    write_text(out / "seeds.html", html(page))
    return out / "seeds.html"


def _page(summary: Summary, name: str) -> Page:
    words = {"metric": summary.metric.capitalize(), "batch": summary.gate_batch}
    rows: Rows = []
    for key, (title, form) in FIGURES.items():
        one = summary.figures[key]
        sd = "" if one.sd is None else form(one.sd).lstrip("+")
        rows.append([title.format(**words), form(one.mean), sd, f"{form(one.low)} to {form(one.high)}"])
    each: Rows = [
        [
            f"seed {seed}",
            *(form(row[key]) for key, (_, form) in FIGURES.items()),
            Cell(row["status"], kind=row["status"]),
        ]
        for seed, row in summary.seeds.items()
    ]
    count = len(summary.seeds)
    heads = ("", *(title.format(**words) for title, _ in FIGURES.values()), "Verdict")
    sections = [
        Section(f"Mean of {count}", [Table(("", "Mean", "Standard deviation", "Range"), rows, (1, 2, 3))], brief=True),
        Section("Each seed", [Table(heads, each, tuple(range(1, len(FIGURES) + 1)))], brief=True),
    ]
    text = Text(f"{count} seeds of one config, each a run of its own beside this file. The verdict: {RULE}.")
    return Page(f"{name}, seeds {', '.join(summary.seeds)}", summary.status, "", [text], "", sections)
