"""The first screen: dense beside compact, what a reader asks first, and one sentence that says whether to deploy."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.check.results import LatencyEntry
from pipeline.check.why import WORTHWHILE
from pipeline.report import pair
from pipeline.report.collect import CHECK, ENGINE, SPARSE, SURGERY, Run
from pipeline.report.document import Engine, Report
from pipeline.report.networks import in_single, largest
from pipeline.report.page import Block, Cell, Table, numbers
from runtime.gate import Gate
from runtime.measure.conditions import complaints

COMPARED = ("", "Dense", "Compact", "Change")
SLOWER = 1.05
"""Times the p50 of fp32 from which a lower precision is said to be slower: they are not timed in turn."""


@dataclass(frozen=True)
class Row:
    """A comparison of dense and compact in one form at one batch."""

    backend: str
    precision: str
    batch: int
    entry: LatencyEntry

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}, batch{numbers.GAP}{self.batch}"


def latency_rows(report: Report) -> list[Row]:
    """Backends and precisions as measured, batches in order."""
    return [
        Row(backend, precision, batch, entry)
        for backend, precisions in report.latency.items()
        for precision, batches in precisions.items()
        for batch, entry in sorted((int(key.removeprefix("b")), value) for key, value in batches.items())
    ]


def headline(run: Run) -> Row | None:
    """The comparison that is gated, else fp32 at the gated batch, else the first with a ratio."""
    measured = [row for row in latency_rows(run.report) if row.entry.speedup is not None]
    gated = [row for row in measured if (row.entry.protocol or {}).get("gated")]
    alike = [row for row in measured if row.precision == "fp32" and row.batch == run.gate_batch]
    return next(iter(gated + alike + measured), None)


def headlines(run: Run) -> list[Row]:
    """Batch 1 and the gated batch of the form that is gated: what a single caller waits for, and what is judged."""
    gated = headline(run)
    if gated is None:
        return []
    return [
        row
        for row in latency_rows(run.report)
        if (row.backend, row.precision) == (gated.backend, gated.precision)
        and row.batch in (1, gated.batch)
        and row.entry.speedup
    ]


def doubts(run: Run) -> list[str]:
    """What made the gated comparison doubtful."""
    row = headline(run)
    return complaints(row.entry.conditions) if row and row.entry.conditions else []


def slower(report: Report) -> list[str]:
    """What got slower: forms in which compact takes longer than dense, and lower precisions in which it takes longer
    than in fp32 on the same backend at the same batch."""
    compared = {(r.backend, r.precision, r.batch): r for r in latency_rows(report) if r.entry.speedup}
    sentences = [
        f"compact than dense on {row.name}"
        for row in compared.values()
        if row.entry.speedup and numbers.wording(row.entry.speedup).endswith("slower")
    ]
    factors: dict[tuple[str, str], dict[int, float]] = {}
    for (backend, precision, batch), row in compared.items():
        fp32 = compared.get((backend, "fp32", batch))
        if fp32 and fp32 is not row and fp32.entry.compact and row.entry.compact:
            factor = row.entry.compact.p50_ms / fp32.entry.compact.p50_ms
            if factor >= SLOWER:
                factors.setdefault((backend, precision), {})[batch] = factor
    for (backend, precision), by_batch in factors.items():
        low, high = (f"{edge(by_batch.values()):.1f}" for edge in (min, max))
        times, batches = low if low == high else f"{low} to {high}", ", ".join(map(str, by_batch))
        sentences.append(f"{precision} than fp32 on {backend}, {times} times at batch {batches}")
    return sentences


def top(run: Run) -> list[Block]:
    report = run.report
    proof = [channels(report), function(report)] if report.pair is None else pair.facts(report.pair)
    facts = [(row[0], Cell(row[1], row[2])) for row in (*proof, speed(run), engines(report), server(run))]
    rows = comparisons(run)
    return [*([Table(COMPARED, rows, (1, 2, 3))] if rows else []), Table((), facts)]


def comparisons(run: Run) -> list[list[Cell | str]]:
    """Dense beside compact: accuracy, latency at batch 1 and at the gated batch, MACs and file size. The
    ratio of each is said here and in the table of its own section, nowhere else."""
    report = run.report
    dense, compact = report.models.dense, report.models.compact
    rows: list[list[Cell | str]] = []
    if (form := accuracy_form(report)) and (paired := report.accuracy_difference):
        before, after = (numbers.percent(model.accuracy[form]) for model in (dense, compact))
        low, high = paired.ci95_pp
        change = Cell(f"{paired.difference_pp:+.2f}{numbers.GAP}pp", f"{low:+.2f} to {high:+.2f}", "number")
        rows.append([f"{numbers.capital(report.metric_name)}, {paired.n:,} images", before, after, change])
    for row in headlines(run):
        entry = row.entry
        assert entry.speedup and entry.dense and entry.compact
        gated = ", gated" if row.batch == run.gate_batch else ""
        interval = numbers.between(*entry.speedup.ci95).strip("()")
        change = Cell(numbers.ratio(entry.speedup.ratio), f"{numbers.wording(entry.speedup)}, {interval}", "number")
        label = Cell(f"Latency, batch{numbers.GAP}{row.batch}", f"{row.backend} {row.precision}{gated}")
        rows.append([label, *(numbers.milliseconds(one.p50_ms) for one in (entry.dense, entry.compact)), change])
    sizes: list[tuple[str, float | None, float | None, Callable[[float | None], str]]] = [
        ("MACs an image", dense.macs, compact.macs, numbers.short),
        ("ONNX file, fp32", dense.bytes, compact.bytes, numbers.binary),
    ]
    for label_, before_, after_, form_ in sizes:
        if before_ and after_:
            rows.append([label_, form_(before_), form_(after_), numbers.ratio(before_ / after_)])
    return rows


def accuracy_form(report: Report) -> str | None:
    """The first form whose accuracy both networks have: torch, where it was measured."""
    dense, compact = report.models.dense.accuracy, report.models.compact.accuracy
    return next((form for form, value in dense.items() if value is not None and compact.get(form) is not None), None)


Fact = tuple[str, str, str]
"""Question, answer, and what it rests on."""


def channels(report: Report) -> Fact:
    cut, name = report.surgery, "Channels"
    if cut.channels_before is None or cut.channels_dead is None or cut.channels_after is None:
        return unknown(name, SURGERY)
    share = numbers.percent(cut.channels_dead / cut.channels_before, 0)
    held = cut.channels_after - (cut.channels_before - cut.channels_dead)
    dead = f", {held:,} of them dead, for alignment" if held > 0 else ""
    died = f"{cut.channels_dead:,} of {cut.channels_before:,} died ({share})"
    early = f"; {cut.removed_in_training:,} were cut out during training" if cut.removed_in_training else ""
    return name, died, f"{cut.channels_after:,} remain{dead}{early}"


def function(report: Report) -> Fact:
    """Whether compact computes what the trained network does, on what evidence, and which two were compared."""
    cut, name = report.surgery, "Same function"
    if cut.channels_before is None:
        return unknown(name, SURGERY)
    if cut.law is None:
        return name, "Not checked", cut.reasons["law"]
    answer = "Yes, while what was measured dead stays dead" if cut.law.held else "Yes, by proof from the weights"
    if cut.evidence is not None and cut.evidence.by_proof == cut.evidence.by_measurement == 0:
        answer = "Yes: nothing was cut after training"
        if cut.removed_in_training:
            answer = "Yes: every cut was made during training, and changed nothing"
    if any(gate.name == "max_abs_diff" and gate.status == "fail" for gate in report.verdict.gates):
        answer = "In float64 only: in float32 the difference is beyond its limit"
    compared = f"compact against the trained network ({SPARSE}), not against dense"
    if cut.removed_in_training:
        compared = f"each removal against the network before it, and {compared}"
    parts = [
        f"{compared}: largest difference {numbers.small(largest(report))} relative in float64"
        f"{in_single(cut.law.single)}, {numbers.small(cut.max_abs_diff)} in float32"
    ]
    if cut.change is not None:
        moved = cut.change.test
        if report.metric_name == "accuracy":
            parts.append(f"{moved.top1_changed:,} of {moved.images:,} test images change class")
    return name, answer, "; ".join(parts)


def speed(run: Run) -> Fact:
    """What the latencies above leave out: what got slower, what was too close, and what makes them doubtful."""
    name, row = "Speed", headline(run)
    if row is None or row.entry.speedup is None:
        return unknown(name, CHECK)
    slow = slower(run.report)
    parts = [f"doubtful: {doubt}" for doubt in doubts(run)]
    if numbers.wording(row.entry.speedup) == "no difference found":
        parts.append(f"less than {numbers.ratio(row.entry.speedup.detectable)} would not have been found")
    if run.report.why and run.report.why[0].share < WORTHWHILE:
        parts.append("the time fell by much less than the MACs, explained below")
    answer = f"Slower: {slow[0]}" if slow else "Nothing that was measured got slower"
    return name, answer, "; ".join([*slow[1:4], *([f"and {len(slow) - 4} more"] if len(slow) > 4 else []), *parts])


def engines(report: Report) -> Fact:
    """How many were built, and where they were measured."""
    every, name = report.engines, "Engines"
    if not every:
        done = any(stage.folder == ENGINE and stage.status == "done" for stage in report.stages)
        return (name, "None was asked for", "") if done else unknown(name, ENGINE)
    built = [engine for engine in every if engine.path]
    ran = [engine for engine in built if engine.measured_on]
    groups = (
        ("not built", [engine.reason for engine in every if not engine.path]),
        ("not run", [engine.reason for engine in built if not engine.measured_on]),
    )
    parts = [_kinds(built)] if built else []
    parts += [f"{what}: {reason}" for what, reasons in groups for reason in dict.fromkeys(reasons)]
    place = f" on {', '.join(dict.fromkeys(str(engine.measured_on) for engine in ran))}" if ran else " here"
    return name, f"{len(built)} of {len(every)} built, {len(ran) or 'none'} measured{place}", "; ".join(parts)


def server(run: Run) -> Fact:
    """Where the folder that a server loads is."""
    published, name = run.report.published, "For a server"
    if published is None:
        return name, "No Triton repository yet", f"demport publish {shlex.quote(str(run.folder))} DIR writes one"
    what = {"triton": "Triton repository", "bundle": "Bundle for KServe and OpenVINO Model Server"}[published.format]
    stale = "" if published.current else "; the run has changed since: publish it again with --replace"
    models = f"release {published.serial}: {', '.join(published.models)}{stale}"
    return name, f"{what} in {published.directory}", models


def conclusion(run: Run) -> str:
    """Deploy or not, at which batch and precision, and why."""
    report = run.report
    failed, open_ = (
        [gate for gate in report.verdict.gates if gate.status == status] for status in ("fail", "inconclusive")
    )
    if not report.verdict.gates:
        return f"Do not deploy yet: {CHECK} has not finished, so nothing was judged."
    if report.verdict.status == "fail":
        return f"Do not deploy, for a gate failed: {_reasons(failed)}."
    choice = fastest(run)
    form = f"compact in {choice.precision} on {choice.backend}, batch {choice.batch}" if choice else "compact"
    if report.verdict.status == "inconclusive":
        return f"Do not deploy {form} yet, for a gate is undecided: {_reasons(open_)}."
    speedup = choice.entry.speedup if choice else None
    gain = numbers.wording(speedup) if speedup else ""
    if speedup is None or not gain.endswith("faster"):
        return f"Deploy {form} for its size only: every gate passes, but it is not faster than dense there."
    holds = f"keeps its {report.metric_name} within the limit"
    return f"Deploy {form}: it is {gain} than dense there, {holds}, and every gate passes."


def _reasons(gates: Sequence[Gate]) -> str:
    # a gate's reason begins with its figure, which the page shows already
    named = [f"{gate.name} ({gate.reason.split('; ', 1)[-1]})" if gate.reason else gate.name for gate in gates]
    return "; ".join(named[:2]) + (f"; and {len(named) - 2} more" if len(named) > 2 else "")


def fastest(run: Run) -> Row | None:
    """At the gated batch, the form in which compact takes least, of those whose accuracy is within the budget."""
    report, gated = run.report, headline(run)
    limit = next((gate.limit for gate in report.verdict.gates if gate.name == f"max_{report.metric_name}_drop"), None)
    dense = report.models.dense.accuracy.get("torch")

    def holds(row: Row) -> bool:
        name = {"fp32": "simplified"}.get(row.precision, row.precision)
        forms = [
            v for form, v in report.models.compact.accuracy.items() if form == name or f".{row.precision}." in form
        ]
        value = next((v for v in forms if v is not None), None)
        return None not in (value, dense, limit) and 100 * ((dense or 0) - (value or 0)) <= (limit or 0)

    rows = [
        (row.entry.compact.p50_ms, at, row)
        for at, row in enumerate(latency_rows(report))
        if gated and row.batch == gated.batch and row.backend != "torch" and row.entry.compact and holds(row)
    ]
    return min(rows)[2] if rows else gated


def unknown(question: str, stage: str) -> Fact:
    return question, "Not known", f"{stage} has not finished"


def _kinds(built: Sequence[Engine]) -> str:
    """`tensorrt_rtx fp32, fp16 for SM86`."""

    def kinds() -> Iterator[str]:
        for flavour, target in dict.fromkeys((engine.flavour, engine.target) for engine in built):
            of = [engine.precision for engine in built if (engine.flavour, engine.target) == (flavour, target)]
            yield f"{flavour} {', '.join(dict.fromkeys(of))} for {target}"

    return "; ".join(kinds())
