"""Commands on the folder of a finished run: check it again, render its report, publish it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import contents, data, rendering, stage_record
from pipeline.config import Config
from pipeline.config_file import load_config
from pipeline.progress import Progress
from pipeline.run import (
    CHECK,
    Order,
    Outcome,
    check_stage,
    demand_device,
    outcome_of,
    task_of,
    workspace_of,
    write_config,
)
from pipeline.workspace import CONFIG, STAGES, Done, is_run
from runtime.errors import UserError
from runtime.files import read_json

if TYPE_CHECKING:
    from pipeline.publishing import Published, Target

PUBLISH = "80-publish"


def config_of(folder: Path, overrides: tuple[str, ...] = ()) -> Config:
    """The config a run folder was made with. UserError if it is no run folder."""
    if not is_run(folder) or not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no run folder", f"expected a folder with {CONFIG}", "make one with `demport run`")
    return load_config(folder / CONFIG, overrides)


def check(order: Order, overrides: tuple[str, ...], progress: Progress) -> Outcome:
    """Run the check again on what a run left, with its config and `overrides`. Raises UserError."""
    demand_device(order.device)
    config = config_of(order.out, overrides)
    contents.make_importable(Path.cwd())
    with workspace_of(config, order, progress) as work:
        before = [name for name in STAGES if name < CHECK]
        made = {name: work.finished(name) for name in before}
        _demand_same_data(config, made["10-dense"])
        write_config(config, order.out)
        done = check_stage(work, task_of(config, order, progress), *made.values())
        return outcome_of(order.out, [done], progress)


def report(folder: Path, progress: Progress) -> Path:
    """Render the report of a run folder again; the path of its HTML page. Raises UserError."""
    with workspace_of(config_of(folder), Order(folder), progress):
        rendering.render(folder)
    return folder / "report.html"


def compare(folders: Sequence[Path], page: Path, progress: Progress) -> dict[str, Any]:
    """Put several runs on one plot; the JSON document that ends the command. Raises UserError."""
    from pipeline.report.compare import compare as compare_runs

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
    """Write a folder for a server from a run, and record it in the run folder. Raises UserError."""
    from pipeline.publishing import Published, publish_run

    config = config_of(folder, overrides)
    contents.make_importable(Path.cwd())
    with workspace_of(config, Order(folder, redo=frozenset({PUBLISH})), progress) as work:
        _demand_same_data(config, work.finished("10-dense"))
        made = [work.finished(name) for name in ("50-simplify", "55-precision", "60-engine")]
        simplified, casts, engines = made
        verdict = _verdict(folder, made)
        if verdict != "pass":
            told = "is not done" if verdict is None else f"says {verdict}"
            progress.note(f"note: the check of {folder} {told}; `demport check {folder}` does it again")
        done = work.stage(
            PUBLISH,
            lambda out: publish_run(config, folder, target, verdict, simplified, casts, engines),
            inputs={
                "directory": str(target.directory),
                "format": target.format,
                "allow_rtx": target.allow_rtx,
                "verdict": verdict,
                "publish": config.publish.model_dump(mode="json"),
            },
            upstream=made,
            code=2,
            versions={},
        )
        try:
            rendering.render(folder)  # its first lines say where the folder is
        except UserError as error:
            progress.note(f"the report was not written again: {error}")
        return done.result(Published)


def _verdict(folder: Path, made: Sequence[Done]) -> str | None:
    """What the check says of these very stages; None where it did not look at them."""
    record = stage_record.read(folder / CHECK)
    if record is None or record.problem:
        return None
    try:
        if any(record.content["upstream"][done.stage] != done.digest for done in made):
            return None
        return str(read_json(folder / CHECK / "check.json")["verdict"]["status"])
    except (KeyError, TypeError, ValueError, OSError):  # sealed by somebody else
        return None


def _demand_same_data(config: Config, dense: Done) -> None:
    record = stage_record.read_unverified(dense.folder)
    assert record is not None
    if record["inputs"]["content"]["data"] != data.fingerprint(config.data):
        raise UserError(
            f"data.source {config.data.source} changed since {dense.folder} was made",
            "the data of the run",
            "bring it back, or run `demport run` again",
        )
