"""Writes report.json, report.md and report.html of a run, and says whether they are those of the stages beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.workspace import record as stage_record
from pipeline.workspace.folder import CONFIG, MARK, REPORTS
from pipeline.workspace.stages import EVERY
from runtime import files
from runtime.files import read_json

if TYPE_CHECKING:
    from pipeline.report.collect import Run
    from pipeline.report.page import Page

BASELINES = "baselines/baselines.json"
REPORT_BYTES = 2 * 2**20
"""Room that the three files take: plots and up to 12 images."""


def render(folder: Path) -> None:
    """Write the three files and remember what they were made from. UserError as `collect`."""
    (folder / MARK).unlink(missing_ok=True)
    try:
        write(folder)
        files.write_json(folder / MARK, _basis(folder))
    except OSError as error:
        if files.is_disk_full(error):
            raise files.disk_full(folder, REPORT_BYTES, "the report") from error
        raise


def write(folder: Path) -> None:
    """The three files, each at once."""
    from pipeline.report import document
    from pipeline.report.collect import collect
    from pipeline.report.page import html, markdown

    run = collect(folder)
    content = page(run)
    document.write(folder / "report.json", run.report)
    files.write_text(folder / "report.md", markdown(content))
    files.write_text(folder / "report.html", html(content))


def page(run: Run) -> Page:
    from pipeline.report import accuracy, glance, method, networks, pair, speed, training
    from pipeline.report.collect import CHECK, DENSE, SPARSE
    from pipeline.report.page import Page
    from pipeline.report.several import baselines

    report, row = run.report, glance.headline(run)
    deciding = [gate.name for gate in report.verdict.gates if gate.status == report.verdict.status != "pass"]
    histories = [f"{stage}/history.jsonl" for stage in (DENSE, SPARSE)]
    worth = []
    if report.masked is not None:
        cut, models = report.surgery, report.models
        channels = (cut.channels_before, cut.channels_dead, cut.channels_after)
        macs = (models.dense.macs, models.compact.macs)
        latency = method.latency_in_words(row.name, row.entry.speedup) if row else ""
        worth = [method.worth(report.masked, channels, macs, latency)]
    check = stage_record.read_unverified(run.folder / CHECK)
    simpler = baselines.section(run.folder, None if check is None else str(check.get("digest")))
    sections = [
        networks.gates(report),
        *speed.sections(run),
        *([] if simpler is None else [simpler]),
        accuracy.section(run),
        *([networks.channels(report)] if report.pair is None else [pair.section(report.pair)]),
        *worth,
        *([training.section(run.dense, run.sparse, histories)] if report.pair is None else []),
        *([networks.graphs(report)] if report.graphs else []),
        networks.engines(report),
        *([networks.certificate(report)] if report.pair is None else []),
        networks.place(report),
        networks.words(report),
    ]
    return Page(
        report.name, report.verdict.status, ", ".join(deciding), glance.top(run), glance.conclusion(run), sections
    )


def is_current(folder: Path) -> bool:
    """Whether the three files are there and were made from the stages that are there."""
    try:
        mark = read_json(folder / MARK)
    except (OSError, ValueError):
        return False
    return bool(mark == _basis(folder)) and all((folder / name).is_file() for name in REPORTS)


def _basis(folder: Path) -> dict[str, str]:
    records = {name: stage_record.read_unverified(folder / name) for name in EVERY}
    digests = {name: str(record.get("digest")) for name, record in records.items() if record is not None}
    beside = folder / BASELINES
    simpler = {BASELINES: files.sha256(beside)} if beside.is_file() else {}
    return digests | simpler | {CONFIG: files.sha256(folder / CONFIG)}
