"""`demport gate`: a run against the accepted release, both measured again in this job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import data
from pipeline.check.forms import BATCH, engine_name
from pipeline.commands.destination import write_through
from pipeline.commands.finished_run import config_of
from pipeline.config import Config
from pipeline.config.task import task_of
from pipeline.data.dataset import at_once
from pipeline.report import document as report_document
from pipeline.results import Engines, SimplifiedGraphs
from pipeline.workspace import fingerprint as contents
from pipeline.workspace import record as stage_record
from pipeline.workspace.folder import Done
from pipeline.workspace.stages import stages_of
from runtime.backends import DeviceName, Session, open_session
from runtime.backends.feeds import random_feeds
from runtime.errors import UserError
from runtime.files import read_json
from runtime.gate import output
from runtime.gate.baseline import (
    NAME,
    ONNX,
    Baseline,
    Release,
    Rules,
    demand_own,
    figures_of,
    read_baseline,
    write_baseline,
)
from runtime.gate.comparison import Measured, changes, demand_same_name, judge
from runtime.measure.accuracy import accuracy, agree
from runtime.measure.latency import Comparison, Opener, Running, in_turn
from runtime.measure.statistics import PairedAccuracy

CHECK = "70-check"
PRECISION = 0.2  # of the allowance: half-width of the ratio's interval at which a comparison ends
DEVICE: DeviceName = "auto"


@dataclass(frozen=True)
class Request:
    """`junit` and `summary` are files to write the verdict to, as JUnit XML and as Markdown. An update asks `accept`,
    which is shown the figures that change. `say` takes lines for people."""

    run: Path
    baseline: Path
    update: bool = False
    junit: Path | None = None
    summary: Path | None = None
    accept: Callable[[list[str]], bool] = lambda changes: True
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Subject:
    """The run that is judged: its `release`, the check's document, and the compact network's files by "onnx" or the
    engine's name, each with the device that an engine ran on."""

    config: Config
    release: Release
    document: Mapping[str, Any]
    files: Mapping[str, tuple[Path, str | None]]


def gate(request: Request) -> dict[str, Any]:
    """The JSON document: `status` pass, fail, inconclusive or updated, `gates[]`, and `latency`, `accuracy` and
    `conditions` as measured. Raises UserError. With `update` the run becomes the baseline, and nothing is judged."""
    subject = subject_of(request.run)
    if request.update:
        return _update(request, subject)
    baseline = read_baseline(request.baseline)
    demand_same_name(subject.config.name, baseline)
    measured = measure(request.baseline, baseline, subject, request.say)
    verdict = judge(subject.release, subject.document["verdict"], baseline, measured)
    if request.junit is not None:
        write_through(request.junit, output.junit(verdict, subject.config.name))
    if request.summary is not None:
        write_through(request.summary, output.summary(verdict, subject.config.name))
    return {
        "status": verdict.status,
        "baseline": str(request.baseline),
        "gates": [dataclasses.asdict(one) for one in verdict.gates],
        "accuracy": None if measured.accuracy is None else dataclasses.asdict(measured.accuracy),
        "latency": {where: _document(one) for where, one in measured.latency.items()},
    }


def _document(comparison: Comparison) -> dict[str, Any]:
    p50_ms = {role: comparison.models[i].p50_ms for i, role in enumerate(("accepted", "new"))}
    conditions = dict(comparison.conditions)
    return {"p50_ms": p50_ms, "speedup": dataclasses.asdict(comparison.speedups[0]), "conditions": conditions}


def _update(request: Request, subject: Subject) -> dict[str, Any]:
    verdict, folder = subject.document["verdict"], request.baseline
    if verdict["status"] == "fail":
        names = ", ".join(gate["name"] for gate in verdict["gates"] if gate["status"] == "fail")
        raise UserError(f"the run failed {names}", "a run that does not fail", "mend it before it becomes the baseline")
    demand_own(folder)
    before = read_baseline(folder) if (folder / NAME).exists() else None
    if before is not None:
        demand_same_name(subject.config.name, before)
    if not request.accept(changes(None if before is None else before.release, subject.release)):
        raise UserError("the figures were not accepted", "a yes", f"{folder} is as it was")
    rules = Rules() if before is None else before.rules
    try:
        write_baseline(folder, subject.config.name, rules, subject.release, subject.files)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", "a folder to write to", "choose another path") from error
    return {"status": "updated", "baseline": str(folder), "gates": []}


def subject_of(run: Path) -> Subject:
    """What a finished run left, every file hashed. UserError: a stage is missing, was changed or is of another run, or
    report.json is not of its check."""
    config = config_of(run)
    first = stages_of(config)[0]
    records = {name: _record(run / name) for name in (first, "50-simplify", "60-engine", CHECK)}
    upstream = records[CHECK].get("upstream", {})
    for name in (first, "50-simplify", "60-engine"):
        if upstream.get(name) != records[name]["digest"]:
            raise UserError(f"{run / CHECK} is not of {name} beside it", "a check of it", f"run `demport check {run}`")
    try:
        document = read_json(run / CHECK / "check.json")
        figures, own = figures_of(document["models"]), document["verdict"]["gates"]
        origin = records[first]["inputs"]
        source = {"source": config.data.source, "fingerprint": str(origin["content"]["data"])}
        model = {key: origin["model"].get(key) for key in ("name", "args")}
        assert isinstance(own, list)
        environment = dict(document["environment"])
    except (KeyError, TypeError, ValueError, AttributeError, OSError, AssertionError) as error:
        problem = f"{run / CHECK} is not whole ({type(error).__name__}: {error})"
        raise UserError(problem, "a finished check", f"run `demport check {run}`") from error
    _demand_report(run, document)
    simplified = Done("50-simplify", run / "50-simplify", "", ran=False).result(SimplifiedGraphs)
    engines = Done("60-engine", run / "60-engine", "", ran=False).result(Engines).engines
    ran_on = {one["path"]: one["measured_on"] for one in document["engines"] if one["path"]}
    built = {engine_name(one): one.engine.path for one in engines if one.engine and one.model == "compact"}
    devices = {name: ran_on.get(f"{path.parent.name}/{path.name}") for name, path in built.items()}
    files = {ONNX: (simplified.compact.path, None)} | {
        name: (path, device) for name, path in built.items() if (device := devices[name]) is not None
    }
    tree = config.model_dump(mode="json")
    release = Release(
        figures=figures, engines=list(built), data=source, model=model, config=tree, environment=environment
    )
    return Subject(config, release, document, files)


def _record(folder: Path) -> Mapping[str, Any]:
    record = stage_record.read(folder)
    if record is None or record.problem:
        problem = "not there" if record is None else record.problem
        raise UserError(f"{folder}: {problem}", "expected a finished stage", "run `demport run` first")
    return record.content


def _demand_report(run: Path, document: Mapping[str, Any]) -> None:
    """The report that people read tells what is judged here."""
    path = run / "report.json"
    if not path.exists():
        return
    report = report_document.read(path)
    try:
        same = report["verdict"] == document["verdict"] and report["name"] == config_of(run).name
        for role, measured in document["models"].items():
            shown = report["models"][role]
            same = same and all(shown[key] == measured[key] for key in ("params", "macs", "bytes", "accuracy"))
    except (KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise UserError(f"{path} is not of the stages beside it", "a report of them", f"run `demport report {run}`")


def measure(folder: Path, baseline: Baseline, subject: Subject, say: Callable[[str], None]) -> Measured:
    """Both compact networks in this job: as ONNX files, and as engines where both run here."""
    reasons: dict[str, str] = {}
    accepted = folder / baseline.files[ONNX].file
    new, _ = subject.files[ONNX]
    pair, agreement = None, None
    if baseline.rules.accuracy is not None or "agreement" in baseline.rules.limits:
        say(f"gate: {task_of(subject.config.task).metric} of the accepted and the new network")
        try:
            pair, agreement = _accuracies(accepted, new, baseline, subject)
        except UserError as error:
            reasons["accuracy"] = str(error)
    latency: dict[str, Comparison] = {}
    if baseline.rules.latency is not None:
        say("gate: latency of the accepted and the new network, in turn")
        running = dict(_comparisons(folder, baseline, subject, reasons))
        latency = dict(zip(running, in_turn(list(running.values())), strict=True))
    return Measured(latency, pair, agreement, reasons)


def _accuracies(accepted: Path, new: Path, baseline: Baseline, subject: Subject) -> tuple[PairedAccuracy, float | None]:
    """On the same test images. UserError: they are not those of the run or of the baseline."""
    contents.make_importable(Path.cwd())
    section = subject.config.data
    now = data.fingerprint(section)
    for whose, origin in (("the run", subject.release.data), ("the baseline", baseline.release.data)):
        if origin["fingerprint"] != now:
            raise UserError(
                f"data.source {section.source} is not the data of {whose}", "the same images", "bring them back"
            )
    test, task = data.load(section).test, task_of(subject.config.task)
    opener = partial(open_session, device=DEVICE, threads=subject.config.check.threads)
    results = []
    for path in (accepted, new):
        with closing(opener(path, "onnxruntime")) as session:
            results.append(accuracy(session, test.batches(at_once(test, BATCH)), task.judge()))
    pair = results[1].judged.against(results[0].judged)
    return pair, agree(results[0].outputs, results[1].outputs, task.answers).top1_agreement


def _comparisons(
    folder: Path, baseline: Baseline, subject: Subject, reasons: dict[str, str]
) -> Iterator[tuple[str, Running]]:
    section, allowance = subject.config.check, baseline.rules.latency or 0.0
    for name, stored in baseline.files.items():
        where = f"onnxruntime.fp32.b{section.gate_batch}" if name == ONNX else f"{name}.b{section.gate_batch}"
        if name not in subject.files:
            if name in subject.release.engines:  # else it is gone, which has a gate of its own
                reasons[where] = (
                    f"{name} did not run here when the run was checked; the accepted one ran on {stored.device}"
                )
            continue
        paths = (folder / stored.file, subject.files[name][0])
        flavour = "onnxruntime" if name == ONNX else name.partition(".")[0]
        openers: list[Opener] = [partial(open_session, path, flavour, DEVICE, section.threads) for path in paths]
        try:
            feeds = [_feed(opener, section.gate_batch) for opener in openers]
            if {key: one.shape for key, one in feeds[0].items()} != {key: one.shape for key, one in feeds[1].items()}:
                raise UserError("the networks take different inputs", "the same", "write the baseline anew")
            running = Running(
                openers,
                [feeds[0], feeds[0]],
                min_blocks=section.min_blocks,
                time_limit_s=section.time_limit_s,
                precision=max(PRECISION * allowance, 0.005),
            )
            running.advance()
        except UserError as error:
            reasons[where] = str(error)
            continue
        yield where, running


def _feed(opener: Opener, batch: int) -> dict[str, Any]:
    with closing(opener()) as session:
        return random_feeds(session, _batch(session, batch))


def _batch(session: Session, batch: int) -> int:
    """`batch`, or the only one that the graph takes."""
    fixed = next((spec.shape[0] for spec in session.inputs if spec.shape and spec.shape[0] is not None), None)
    return fixed or batch
