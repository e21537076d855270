"""When the report of a run folder is written: whenever it is not that of the stages that are there."""

from __future__ import annotations

from pathlib import Path

from pipeline import files, stage_record
from pipeline.workspace import CONFIG, REPORTS, STAGES
from runtime.files import read_json

MARK = ".rendered.json"
REPORT_BYTES = 8 * 2**20
"""A page carries its plotting library, about 5 MiB."""


def render(folder: Path) -> None:
    """Write report.json, report.md and report.html, and remember what they were made from. Raises UserError."""
    from pipeline.report.render import render as render_report

    (folder / MARK).unlink(missing_ok=True)
    try:
        render_report(folder)
        files.write_json(folder / MARK, _made_from(folder))
    except OSError as error:
        if files.is_disk_full(error):
            raise files.disk_full(folder, REPORT_BYTES, "the report") from error
        raise


def is_current(folder: Path) -> bool:
    """Whether the three files are there and were made from the stages that are there."""
    try:
        mark = read_json(folder / MARK)
    except (OSError, ValueError):
        return False
    return bool(mark == _made_from(folder)) and all((folder / name).is_file() for name in REPORTS)


def _made_from(folder: Path) -> dict[str, str]:
    records = {name: stage_record.read_unverified(folder / name) for name in STAGES}
    digests = {name: str(record.get("digest")) for name, record in records.items() if record is not None}
    return digests | {CONFIG: files.sha256(folder / CONFIG)}
