"""What a reader wants to know first: one row each on top of the two pages."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.why import WORTHWHILE

from . import numbers, speed_view, view
from .schema import EngineFile, Report
from .view import Source

SURGERY, ENGINE, CHECK = "30-surgery", "60-engine", "70-check"
VERDICTS = {"faster": "faster", "slower": "slower", "not distinguishable": "no difference found"}


@dataclass(frozen=True)
class Row:
    """`answer` in a few words, and in `more` what it rests on; without a full stop at the end."""

    question: str
    answer: str
    more: str = ""


def glance(source: Source) -> list[Row]:
    """Channels, function, accuracy, speed, size, engines, and where the folder for a server is."""
    report = source.report
    return [
        channels(report),
        function(report),
        accuracy(report),
        speed(source),
        size(report),
        engines(report),
        server(source),
    ]


def channels(report: Report) -> Row:
    cut, name = report.surgery, "Channels"
    if cut.channels_before is None or cut.channels_dead is None or cut.channels_after is None:
        return unknown(name, SURGERY)
    share = numbers.percent(cut.channels_dead / cut.channels_before, 0)
    held = cut.channels_after - (cut.channels_before - cut.channels_dead)
    kept = f", {held:,} of them dead and kept for alignment" if held > 0 else ""
    died = f"{cut.channels_dead:,} of {cut.channels_before:,} channels died ({share})"
    early = f"; {cut.removed_in_training:,} were cut out during training already" if cut.removed_in_training else ""
    return Row(name, died, f"{cut.channels_after:,} are left{kept}{early}")


def function(report: Report) -> Row:
    """Whether compact computes what the trained network did, on what evidence."""
    cut, name = report.surgery, "Same function"
    if cut.channels_before is None:
        return unknown(name, SURGERY)
    if cut.law is None:
        return Row(name, "Not checked", cut.reasons["law"])
    answer = "Yes, while what was measured dead stays dead" if cut.law.held else "Yes, by proof from the weights"
    if cut.evidence is not None and cut.evidence.by_proof == cut.evidence.by_measurement == 0:
        answer = "Yes: nothing was cut after training"
        if cut.removal_rel_diff is not None:
            answer = f"Yes: cut during training, where no cut changed more than {numbers.small(cut.removal_rel_diff)}"
    if any(gate.name == "max_abs_diff" and gate.status == "fail" for gate in report.verdict.gates):
        answer = "In float64 only: in float32 the difference is beyond its limit"
    more = [
        f"largest relative difference {numbers.small(cut.law.max_rel_diff)} in float64"
        f"{view.in_single(cut.law.single)}, largest difference "
        f"{numbers.small(cut.max_abs_diff)} in float32"
    ]
    if cut.change is not None:
        moved = cut.change.test
        more.append(f"against the trained network {moved.top1_changed:,} of {moved.images:,} test images change class")
    return Row(name, answer, "; ".join(more))


def accuracy(report: Report) -> Row:
    """The paired difference with its interval, and both accuracies."""
    hop, paired, name = view.headline_accuracy(report), report.accuracy_difference, "Accuracy"
    if hop is None or paired is None:
        return unknown(name, CHECK)
    before, after = (numbers.percent(model.accuracy[hop]) for model in (report.models.dense, report.models.compact))
    low, high = paired.ci95_pp
    return Row(
        name,
        f"{paired.difference_pp:+.2f} percentage points (95 % interval {low:+.2f} to {high:+.2f})",
        f"{after} against {before} dense, on the same {paired.n:,} test images",
    )


def speed(source: Source) -> Row:
    """The ratio that stands for the run with its interval, and what makes it doubtful or small."""
    row, name = view.headline_latency(source), "Speed"
    if row is None or row.figures.speedup is None or row.figures.dense is None or row.figures.compact is None:
        return unknown(name, CHECK)
    told, dense, compact = row.figures.speedup, row.figures.dense, row.figures.compact
    more = [f"{numbers.milliseconds(compact.p50_ms)} against {numbers.milliseconds(dense.p50_ms)} on {row.name}"]
    if told.verdict == "not distinguishable":
        more.append(f"less than {numbers.ratio(told.detectable)} would not have been found")
    if source.report.why and (why := source.report.why[0]).share < WORTHWHILE:
        more.append(f"{100 * why.share:.0f} % of what the MACs fell by, explained below")
    more += [f"doubtful: {doubt}" for doubt in speed_view.doubts(source)]
    interval = numbers.between(*told.ci95).strip("()")
    answer = f"{numbers.ratio(told.ratio)}, {VERDICTS[told.verdict]} (95 % interval {interval})"
    return Row(name, answer, "; ".join(more))


def size(report: Report) -> Row:
    """MACs, and the file that is deployed."""
    ratio, dense, compact = view.macs_ratio(report), report.models.dense, report.models.compact
    if ratio is None:
        return unknown("Size", CHECK)
    fell = f"fell from {numbers.short(dense.macs)} to {numbers.short(compact.macs)} ({numbers.ratio(ratio)})"
    answer = f"MACs an image {fell if ratio != 1 else f'stay at {numbers.short(dense.macs)}'}"
    if not dense.bytes or not compact.bytes:
        return Row("Size", answer)
    share = numbers.ratio(dense.bytes / compact.bytes)
    return Row("Size", answer, f"ONNX file {numbers.binary(dense.bytes)} to {numbers.binary(compact.bytes)} ({share})")


def engines(report: Report) -> Row:
    """How many were built, and where they were measured."""
    every, name = report.engines, "Engines"
    if not every:
        done = any(stage.folder == ENGINE and stage.status == "done" for stage in report.stages)
        return Row(name, "None was asked for") if done else unknown(name, ENGINE)
    built = [engine for engine in every if engine.path]
    ran = [engine for engine in built if engine.measured_on]
    groups = (
        ("not built", [engine.reason for engine in every if not engine.path]),
        ("not run", [engine.reason for engine in built if not engine.measured_on]),
    )
    more = [_kinds(built)] if built else []
    more += [f"{what}: {reason}" for what, reasons in groups for reason in dict.fromkeys(reasons)]
    where = f" on {', '.join(dict.fromkeys(str(engine.measured_on) for engine in ran))}" if ran else " here"
    return Row(name, f"{len(built)} of {len(every)} built, {len(ran) or 'none'} measured{where}", "; ".join(more))


def server(source: Source) -> Row:
    """Where the folder that a server loads is."""
    told, name = source.report.published, "For a server"
    if told is None:
        run = shlex.quote(str(source.run))
        return Row(name, "No Triton repository yet", f"demport publish {run} DIR writes one")
    what = {"triton": "Triton repository", "bundle": "Bundle for KServe and OpenVINO Model Server"}[told.format]
    stale = "" if told.current else "; the run has changed since: publish it again with --replace"
    return Row(name, f"{what} in {told.directory}", f"release {told.serial}: {', '.join(told.models)}{stale}")


def unknown(question: str, stage: str) -> Row:
    return Row(question, "Not known", f"{stage} has not finished")


def _kinds(built: Sequence[EngineFile]) -> str:
    """`tensorrt_rtx fp32, fp16 for SM86`."""

    def kinds() -> Iterator[str]:
        for flavour, target in dict.fromkeys((engine.flavour, engine.target) for engine in built):
            of = [engine.precision for engine in built if (engine.flavour, engine.target) == (flavour, target)]
            yield f"{flavour} {', '.join(dict.fromkeys(of))} for {target}"

    return "; ".join(kinds())
