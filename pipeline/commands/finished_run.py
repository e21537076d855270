"""Commands on the folder of a finished run: check it again, render its report, publish it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.line import (
    LAST,
    Order,
    Outcome,
    demand_device,
    outcome_of,
    run_of,
    workspace_of,
    write_config,
)
from pipeline.progress import Progress
from pipeline.report import render as rendering
from pipeline.stages import bring_up_to_date
from pipeline.stages.check import CHECK
from pipeline.stages.pair import PAIR_CHECK
from pipeline.workspace import fingerprint as contents
from pipeline.workspace import record as stage_record
from pipeline.workspace.folder import CONFIG, Done, demand_one_run, finished, is_run
from pipeline.workspace.stages import stages_of
from runtime.errors import UserError
from runtime.files import read_json

if TYPE_CHECKING:
    from pipeline.results import Published
    from pipeline.stages.publish import Target

PUBLISH = "80-publish"


def config_of(folder: Path, section: str = "", overrides: tuple[str, ...] = ()) -> Config:
    """The config a run folder was made with; `overrides` may change its `section` alone. UserError: no run folder, or
    stages of several runs in it."""
    for text in overrides:
        if not text.startswith(f"{section}."):
            problem = f"--set {text}, on a finished run"
            raise UserError(problem, f"a key of the section {section}", "change others with `demport run`")
    if not is_run(folder) or not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no run folder", f"expected a folder with {CONFIG}", "make one with `demport run`")
    demand_one_run(folder)
    return load_config(folder / CONFIG, overrides)


def check(order: Order, overrides: tuple[str, ...], progress: Progress) -> Outcome:
    """Run the check again on what a run left, with its config and `overrides`. Raises UserError."""
    demand_device(order.device)
    config = config_of(order.out, "check", overrides)
    contents.make_importable(Path.cwd())
    with workspace_of(config, order, progress) as work:
        stages = [finished(order.out, name) for name in stages_of(config) if name < LAST]
        demand_same_data(config, stages[0])
        write_config(config, order.out)
        run = dataclasses.replace(run_of(config, order, progress), own_engines=False)
        done = bring_up_to_date(run, work, CHECK if config.given is None else PAIR_CHECK, *stages)
        return outcome_of(order.out, [done], progress)


def report(folder: Path, progress: Progress) -> Path:
    """Render the report of a run folder again; the path of its HTML page. Raises UserError."""
    with workspace_of(config_of(folder), Order(folder), progress):
        rendering.render(folder)
    return folder / "report.html"


def compare(folders: Sequence[Path], page: Path, progress: Progress) -> dict[str, Any]:
    """Put several runs on one plot; the JSON document that ends the command. Raises UserError."""
    from pipeline.report.several.compare import compare as compare_runs

    for folder in folders:
        config_of(folder)
    try:
        compared = compare_runs(folders, page)
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}", "a file to write to", "choose another --out") from error
    progress.note(f"written: {compared.html}, {compared.markdown}")
    return compared.document()


def card(folder: Path, progress: Progress) -> Path:
    """Write the model card of a run; its path. Raises UserError."""
    from pipeline.report.card import write_card

    config_of(folder)
    path = write_card(folder)
    progress.note(f"written: {path}")
    return path


def publish(folder: Path, target: Target, overrides: tuple[str, ...], progress: Progress) -> Published:
    """Write a folder for a server from a run, record it in the run folder, where that can be written, and say what is
    left out. Raises UserError."""
    published = _published(folder, target, overrides, progress)
    for omission in published.left_out:
        progress.note(f"left out: {', '.join(omission.what)} ({omission.why})")
    return published


def _published(folder: Path, target: Target, overrides: tuple[str, ...], progress: Progress) -> Published:
    from pipeline.results import Published
    from pipeline.stages.publish import publish_run

    config = config_of(folder, "publish", overrides)
    contents.make_importable(Path.cwd())
    demand_same_data(config, finished(folder, stages_of(config)[0]))
    stages = [finished(folder, name) for name in ("50-simplify", "55-precision", "60-engine")]
    verdict = _verdict(folder, stages)
    if verdict != "pass":
        answer = "is not done" if verdict is None else f"says {verdict}"
        progress.note(f"note: the check of {folder} {answer}; `demport check {folder}` does it again")
    if not os.access(folder, os.W_OK):  # of another user, or on a disk that is only read
        progress.note(f"note: {folder} cannot be written, so it keeps no record of what was published")
        return publish_run(config, folder, target, verdict, *stages)
    with workspace_of(config, Order(folder, redo=frozenset({PUBLISH})), progress) as work:
        done = work.stage(
            PUBLISH,
            lambda out: publish_run(config, folder, target, verdict, *stages),
            inputs={
                "directory": str(target.directory),
                "format": target.format,
                "allow_rtx": target.allow_rtx,
                "verdict": verdict,
                "publish": config.publish.model_dump(mode="json"),
            },
            upstream=stages,
            code=2,
            versions={},
        )
        try:
            rendering.render(folder)  # its first lines say where the folder is
        except UserError as error:
            progress.note(f"the report was not written again: {error}")
        return done.result(Published)


def _verdict(folder: Path, stages: Sequence[Done]) -> str | None:
    """What the check says of these very stages; None where it did not look at them."""
    record = stage_record.read(folder / LAST)
    if record is None or record.problem:
        return None
    try:
        if any(record.content["upstream"][done.stage] != done.digest for done in stages):
            return None
        return str(read_json(folder / LAST / "check.json")["verdict"]["status"])
    except (KeyError, TypeError, ValueError, OSError):  # sealed by somebody else
        return None


def demand_same_data(config: Config, first: Done) -> None:
    """UserError where the data is not what the run's first stage read."""
    record = stage_record.read_unverified(first.folder)
    assert record is not None
    contents.demand_same_data(config, record["inputs"]["content"]["data"], f"{first.folder} was made")
