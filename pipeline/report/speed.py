"""Sections on speed: latency of every form, several sessions at once, where the time goes and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.check.results import Concurrency, LatencyEntry, Role
from pipeline.check.why import WORTHWHILE
from pipeline.report import profile
from pipeline.report.collect import CHECK, Run
from pipeline.report.document import Report
from pipeline.report.glance import Row, headline, latency_rows
from pipeline.report.page import Block, Cell, Picture, Plots, Rows, Section, Table, Text, numbers
from pipeline.report.page.plots import COLOURS, NETWORKS, Span, intervals, log_axis, picture, round_ticks
from runtime.measure.latency import Latency
from runtime.measure.load import Load

QUANTILES = {"fastest": 0.0, "5 %": 5, "25 %": 25, "50 %": 50, "75 %": 75, "95 %": 95, "99 %": 99, "slowest": 100.0}
SOURCE = f"{CHECK}/check.json"


def sections(run: Run) -> Iterator[Section]:
    report = run.report
    for why in report.why:
        if why.share < WORTHWHILE:
            yield Section("Why is it not faster?", profile.explanation(why), brief=True)
    if not report.latency:
        yield Section("Latency", [Text(f"Not run: stage {CHECK}.", "absent")], brief=True)
        return
    yield Section("Latency", list(_latency(run)), brief=True)
    if report.concurrency:
        yield Section("Several sessions at once", list(_loads(report)), brief=True)
    if report.why:
        yield Section("Where the time goes", [block for why in report.why for block in profile.blocks(why)])


def _latency(run: Run) -> Iterator[Block]:
    report, row = run.report, headline(run)
    source = f"{SOURCE}. Timed in turn in one process; the ratio is dense p50 over compact p50, with its 95 % interval."
    yield Text(source, "source")
    swept = _swept(run, row)
    batches = [one.batch for one in swept]
    speeds: dict[Role, Sequence[float]] = {
        "dense": [1000 * one.batch / t.p50_ms for one in swept if (t := one.entry.dense)],
        "compact": [1000 * one.batch / t.p50_ms for one in swept if (t := one.entry.compact)],
    }
    samples = headline_samples(run)
    name = row.name if row else ""
    yield Plots([
        speedup_picture(report),
        distribution_picture(f"Distribution of launches, {name}", samples) if samples else None,
        sweep_picture(f"Batch sweep, {row.backend} {row.precision}", batches, speeds) if row and swept else None,
    ])  # fmt: skip
    heads = ("Form", "Dense", "Compact", "Ratio of p50", "End to end", "Verdict")
    yield Table(heads, [_cells(one) for one in latency_rows(report) if one.entry.speedup], (1, 2, 3, 4))
    yield Text("End to end: with the copies of inputs and outputs inside the timed part.", "source")
    for line in missing(report):
        yield Text(f"Not measured: {line}", "absent")
    if report.reference:
        yield _reference(report)
    if samples:
        cells = [[name, *values] for name, *values in quantiles(samples)]
        yield Table(("Quantile", "Dense", "Compact"), cells, (1, 2), "The distribution as a table")
    if row and (facts := method(row.entry)):
        yield Table((), facts, summary=f"How {row.name} was measured")
    if swept:
        cells = [
            [str(b), numbers.count(d), numbers.count(c)]
            for b, d, c in zip(batches, speeds["dense"], speeds["compact"], strict=True)
        ]
        yield Table(("Batch", "Dense, images/s", "Compact, images/s"), cells, (1, 2), "The batch sweep as a table")


def _cells(row: Row) -> list[Cell | str]:
    entry = row.entry
    assert entry.dense and entry.compact and entry.speedup
    whole = numbers.with_interval(entry.end_to_end.speedup) if entry.end_to_end else ""
    return [
        row.name,
        _timing(entry.dense),
        _timing(entry.compact),
        numbers.with_interval(entry.speedup),
        whole,
        numbers.wording(entry.speedup),
    ]


def _timing(timing: Latency) -> Cell:
    tails = f"p95 {numbers.milliseconds(timing.p95_ms)}\np99 {numbers.milliseconds(timing.p99_ms)}"
    return Cell(numbers.milliseconds(timing.p50_ms), tails, "number")


def _reference(report: Report) -> Text:
    assert report.reference
    against = report.reference
    return Text(
        f"Against the reference {against.file}, fp32 on ONNX Runtime, batch {against.batch}: compact takes "
        f"{numbers.milliseconds(against.compact.p50_ms)}, the reference "
        f"{numbers.milliseconds(against.reference.p50_ms)}; {numbers.with_interval(against.speedup)}, "
        f"{numbers.wording(against.speedup)}."
    )


def missing(report: Report) -> list[str]:
    """`tensorrt_rtx fp32, fp16; batch 1, 8, 32: no GPU`, a line per backend and reason."""
    unmeasured = [(row.backend, row.entry.reason or "", row) for row in latency_rows(report) if not row.entry.speedup]
    return [
        f"{backend} {', '.join(dict.fromkeys(row.precision for row in group))}; batch{numbers.GAP}"
        f"{', '.join(dict.fromkeys(str(row.batch) for row in group))}: {reason}"
        for backend, reason in dict.fromkeys((backend, reason) for backend, reason, _ in unmeasured)
        if (group := [row for b, r, row in unmeasured if (b, r) == (backend, reason)])
    ]


def speedup_picture(report: Report) -> Picture | None:
    """Dense over compact p50 latency for each backend, precision and batch, beside 1 and the gate's limit."""
    spans = [
        Span(f"{row.backend} {row.precision}, {row.batch}", "compact", speedup.ratio, *speedup.ci95)
        for row in latency_rows(report)
        if (speedup := row.entry.speedup)
    ]
    limits = [
        (gate.limit, "gate") for gate in report.verdict.gates if gate.name == "min_speedup" and gate.limit is not None
    ]
    alt = "Speedup of the compact over the dense network, with 95 % intervals."
    marks = [(1.0, "same"), *limits]
    axis = "dense p50 / compact p50; rows: backend, precision, batch"
    return intervals("Speedup by form and batch", spans, axis=axis, alt=alt, marks=marks) if spans else None


def headline_samples(run: Run) -> dict[Role, Sequence[float]] | None:
    """Launch times of dense and compact in the gated comparison; None where there are none."""
    row = headline(run)
    if row is None or not (row.entry.dense and row.entry.compact):
        return None
    key = f"{row.backend}.{row.precision}.b{row.batch}"
    dense, compact = (run.samples.get(f"{role}.{key}", ()) for role in ("dense", "compact"))
    return {"dense": dense, "compact": compact} if dense and compact else None


def quantiles(samples: Mapping[Role, Sequence[float]]) -> list[tuple[str, str, str]]:
    """The distribution as rows: (quantile, dense, compact)."""
    dense, compact = (np.percentile(samples[role], list(QUANTILES.values())) for role in ("dense", "compact"))
    times = zip(map(float, dense), map(float, compact), strict=True)
    return [
        (name, numbers.milliseconds(d), numbers.milliseconds(c)) for name, (d, c) in zip(QUANTILES, times, strict=True)
    ]


def _swept(run: Run, row: Row | None) -> list[Row]:
    """The batches of the form that is gated; [] where it has fewer than two."""
    batches = [
        one
        for one in latency_rows(run.report)
        if row and (one.backend, one.precision) == (row.backend, row.precision) and one.entry.speedup
    ]
    return batches if len(batches) > 1 else []


def method(entry: LatencyEntry) -> list[tuple[str, str]]:
    protocol: Mapping[str, Any] = entry.protocol or {}
    names = {"order": "Order", "openings": "Openings", "blocks": "Blocks", "warmup_rounds": "Warm-up rounds",
             "stopped": "Ended by", "interval": "Interval", "min_effect": "Differences below"}  # fmt: skip
    facts = [(label, str(protocol[key])) for key, label in names.items() if key in protocol]
    if entry.speedup:
        facts.append(("Smallest speedup it would have found", numbers.ratio(entry.speedup.detectable)))
    return facts + (list(conditions(entry.conditions)) if entry.conditions else [])


def conditions(state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How busy the machine was."""
    after, before = state.get("after", {}), state.get("before", {})
    yield "Load, 1 minute", f"{before.get('load_1m')} before, {after.get('load_1m')} after"
    yield "Cores taken by others", f"{state.get('others_busy_pct')}{numbers.GAP}%"
    yield "Cores taken by the hypervisor", f"{state.get('stolen_pct')}{numbers.GAP}%"
    yield "CPU governor", str(after.get("governor") or "not reported by this system")
    for gpu in state.get("gpus", ()):
        ranges = {name: gpu[name] for name in ("sm_mhz", "temperature_c", "power_w") if gpu.get(name)}
        figures = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ranges.items())
        yield str(gpu["name"]), f"{figures}; throttled by: {', '.join(gpu['slowed_by']) or 'nothing'}"


def _loads(report: Report) -> Iterator[Block]:
    every = report.concurrency
    threads = next((entry.threads for entry in every if entry.threads), None)
    computing = f", computing with {threads} thread{'s' if threads > 1 else ''} on a processor" if threads else ""
    yield Text(f"{SOURCE}. Batch {every[0].batch}; each session in a thread of its own{computing}. Ratio of "
               "throughputs, with its 95 % interval.", "source")  # fmt: skip
    counts = sorted({entry.streams for entry in every})
    forms: dict[str, dict[int, Concurrency]] = {}
    for entry in every:
        if entry.speedup:
            forms.setdefault(f"{entry.backend} {entry.precision}", {})[entry.streams] = entry
    if forms:
        heads = ("Form", *(f"{count} session{'s' if count > 1 else ''}" for count in counts))
        ratios = [
            [name, *(numbers.with_interval(loads[count].speedup) if count in loads else "" for count in counts)]
            for name, loads in forms.items()
        ]
        yield Table(heads, ratios, range(1, len(heads)))
    for line in missing_loads(report):
        yield Text(f"Not measured: {line}", "absent")
    cells: Rows = [
        [f"{name}, {load.streams} at once", _load(load.dense), _load(load.compact), numbers.wording(load.speedup)]
        for name, loads in forms.items()
        for load in loads.values()
        if load.dense and load.compact and load.speedup
    ]
    if cells:
        heads = ("Sessions", "Dense", "Compact", "Verdict")
        yield Table(heads, cells, (1, 2), "Throughput, and what a caller waits for")


def _load(load: Load) -> Cell:
    tails = f"p50 {numbers.milliseconds(load.p50_ms)}\np99 {numbers.milliseconds(load.p99_ms)}"
    return Cell(f"{numbers.count(load.images_per_s)} images/s", tails, "number")


def missing_loads(report: Report) -> list[str]:
    """`tensorrt_rtx fp32, fp16; 1, 2 at once: no GPU`, a line per backend and reason."""
    unmeasured = [(entry.backend, entry.reason or "", entry) for entry in report.concurrency if not entry.speedup]
    return [
        f"{backend} {', '.join(dict.fromkeys(entry.precision for entry in group))}; "
        f"{', '.join(dict.fromkeys(str(entry.streams) for entry in group))} at once: {reason}"
        for backend, reason in dict.fromkeys((backend, reason) for backend, reason, _ in unmeasured)
        if (group := [entry for b, r, entry in unmeasured if (b, r) == (backend, reason)])
    ]


def distribution_picture(title: str, samples: dict[Role, Sequence[float]]) -> Picture:
    """Share of launches that took at most so long, in ms; the slowest half percent lies outside."""

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        ends = []
        for role, values in samples.items():
            ordered = np.sort(np.asarray(values, float))
            axes.step(ordered, 100 * np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=COLOURS[role])
            axes.axvline(float(np.median(ordered)), color=COLOURS[role], linewidth=0.8, linestyle=(0, (4, 3)))
            ends.append((float(ordered[0]), float(np.quantile(ordered, 0.995))))
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        if high > 4 * low > 0:
            log_axis(axes, low / 1.1, high * 1.1)
        else:
            axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9)
        axes.set_xlabel("ms a launch")
        axes.set_ylabel("launches, %")
        axes.set_ylim(0, 102)

    alt = "Distribution of the launch times of the dense and the compact network."
    return picture(title, draw, height_in=2.6, alt=alt, key=NETWORKS)


def sweep_picture(title: str, batches: Sequence[int], images_per_s: dict[Role, Sequence[float]]) -> Picture:
    """Images a second over the batch size, both axes logarithmic."""

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        for role, values in images_per_s.items():
            axes.plot(batches, values, color=COLOURS[role], marker="o", markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(batches), [str(batch) for batch in batches])
        values = [value for line in images_per_s.values() for value in line]
        axes.set_yscale("log")
        ticks = round_ticks(min(values), max(values))
        axes.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("images a launch")
        axes.set_ylabel("images a second, at p50")

    alt = "Throughput of the dense and the compact network over the batch size."
    return picture(title, draw, height_in=2.6, alt=alt, key=NETWORKS)
