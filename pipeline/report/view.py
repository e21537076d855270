"""What the two pages show, worked out of a Report: rows of formatted figures and the few sentences between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import numbers
from .schema import Report
from .speed_schema import Latency
from .training_view import Epoch


@dataclass(frozen=True)
class Source:
    """What `collect` found: the report, the two trainings, the batch size whose speedup is gated, the latency samples
    (`<role>.<backend>.<precision>.b<batch>` -> ms), and the folder of the check, which holds images."""

    report: Report
    dense: Sequence[Epoch]
    demp: Sequence[Epoch]
    gate_batch: int | None
    samples: Mapping[str, Sequence[float]]
    folder: Path

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder.parent


@dataclass(frozen=True)
class Comparison:
    """A row of dense beside compact; `share` is compact / dense where smaller is better, else None."""

    label: str
    dense: str
    compact: str
    change: str
    share: float | None


@dataclass(frozen=True)
class LatencyRow:
    backend: str
    precision: str
    batch: int
    figures: Latency

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}, batch{numbers.GAP}{self.batch}"


def latency_rows(report: Report) -> list[LatencyRow]:
    """The nested latency table as rows, batches in order."""

    def rows() -> Iterator[LatencyRow]:
        for backend, precisions in report.latency.items():
            for precision, batches in precisions.items():
                for batch, figures in sorted((int(key.removeprefix("b")), value) for key, value in batches.items()):
                    yield LatencyRow(backend, precision, batch, figures)

    return list(rows())


def unmeasured_latencies(report: Report) -> list[str]:
    """`tensorrt_rtx fp32, fp16; batch 1, 8, 32: no GPU`, a line per backend and reason."""
    found: dict[tuple[str, str], list[LatencyRow]] = {}
    for row in latency_rows(report):
        if row.figures.speedup is None:
            found.setdefault((row.backend, row.figures.reason or ""), []).append(row)
    return [
        f"{backend} {', '.join(dict.fromkeys(row.precision for row in rows))}; batch{numbers.GAP}"
        f"{', '.join(dict.fromkeys(str(row.batch) for row in rows))}: {reason}"
        for (backend, reason), rows in found.items()
    ]


def headline_latency(source: Source) -> LatencyRow | None:
    """The comparison that stands for the run: fp32 at the gated batch, else the first with a measured ratio."""
    measured = [row for row in latency_rows(source.report) if row.figures.speedup is not None]
    gated = [row for row in measured if row.precision == "fp32" and row.batch == source.gate_batch]
    return next(iter(gated + measured), None)


def headline_accuracy(report: Report) -> str | None:
    """The first hop whose accuracy both networks have: torch, where it was measured."""
    dense, compact = report.models.dense.accuracy, report.models.compact.accuracy
    return next((hop for hop, value in dense.items() if value is not None and compact.get(hop) is not None), None)


def comparisons(source: Source) -> list[Comparison]:
    """Accuracy, latency, MACs, parameters, channels and file size of dense and compact; empty rows are left out."""
    dense, compact = source.report.models.dense, source.report.models.compact
    rows: list[Comparison] = []
    if hop := headline_accuracy(source.report):
        five = [model.top5.get(hop) for model in (dense, compact)]
        change = numbers.points(_difference(compact.accuracy[hop], dense.accuracy[hop]))
        before, after = (accuracy_with_interval(source.report, model.accuracy[hop]) for model in (dense, compact))
        rows.append(Comparison(f"Accuracy, {hop}", before, after, change, None))
        if five[0] is not None and five[1] is not None:
            told = (numbers.percent(five[0]), numbers.percent(five[1]), numbers.points(five[1] - five[0]))
            rows.append(Comparison(f"Top-5, {hop}", *told, None))
        own = [model.metric.get(hop) for model in (dense, compact)]
        if own[0] is not None and own[1] is not None:
            rows.append(Comparison("Own metric", f"{own[0]:.4g}", f"{own[1]:.4g}", f"{own[1] - own[0]:+.4g}", None))
    row = headline_latency(source)
    if row and row.figures.dense and row.figures.compact:
        times = (row.figures.dense.p50_ms, row.figures.compact.p50_ms)
        rows.append(_smaller(f"Latency p50, {row.name}", times, numbers.milliseconds))
    rows += [
        _smaller("MACs an image", (dense.macs, compact.macs), numbers.short),
        _smaller("Parameters", (dense.params, compact.params), numbers.short),
        _smaller("Channels", (dense.channels, compact.channels), numbers.count),
        _smaller("ONNX file, fp32", (dense.bytes, compact.bytes), numbers.binary),
    ]
    return [row for row in rows if {row.dense, row.compact} != {numbers.NOT_MEASURED}]


def difference(report: Report) -> str | None:
    """The paired comparison of accuracy in a sentence; None where it was not made."""
    paired = report.accuracy_difference
    if paired is None:
        return None
    return (
        f"On the same {paired.n:,} images compact differs from dense by {paired.difference_pp:+.2f} percentage points "
        f"(95 % interval {paired.ci95_pp[0]:+.2f} to {paired.ci95_pp[1]:+.2f}): {paired.only_second} right only when "
        f"compact, {paired.only_first} only when dense, p = {numbers.small(paired.p_value)}. "
        f"{paired.method[:1].upper()}{paired.method[1:]}."
    )


def engines_alike(report: Report) -> str | None:
    """What holds for all engines, where none was measured for one reason; None where they differ."""
    reasons = {engine.reason for engine in report.engines}
    if len(reasons) != 1 or any(engine.measured_on or not engine.path for engine in report.engines):
        return None
    return f"None was run here: {reasons.pop()}."


def summary(source: Source) -> str:
    """One or two sentences with the figures that were measured, none of those that were not."""
    report, parts = source.report, []
    cut = report.surgery
    if cut.channels_before and cut.channels_dead is not None:
        share = numbers.percent(cut.channels_dead / cut.channels_before, 0)
        parts.append(f"{cut.channels_dead:,} of {cut.channels_before:,} channels died ({share})")
    if macs := macs_ratio(report):
        dense, compact = numbers.short(report.models.dense.macs), numbers.short(report.models.compact.macs)
        fell = f"fell from {dense} to {compact} ({numbers.ratio(macs)})"
        parts.append(f"MACs an image {fell if macs != 1 else f'stay at {dense}'}")
    row = headline_latency(source)
    if row and (speedup := row.figures.speedup):
        ratio = f"{numbers.ratio(speedup.ratio)} {numbers.between(*speedup.ci95)}"
        found = (
            f"compact is {speedup.verdict}"
            if speedup.verdict != "not distinguishable"
            else "no difference in speed was found"
        )
        parts.append(f"{found} on {row.name}: {ratio}")
    if hop := headline_accuracy(report):
        before, after = (numbers.percent(model.accuracy[hop]) for model in (report.models.dense, report.models.compact))
        parts.append(f"accuracy {after} against {before} dense")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "Nothing has been measured yet."


def macs_ratio(report: Report) -> float | None:
    dense, compact = report.models.dense.macs, report.models.compact.macs
    return dense / compact if dense and compact else None


def in_single(operators: Sequence[str]) -> str:
    """What is said of operators that the law ran in float32, for they take no float64."""
    return f" but for {', '.join(operators)}, in float32" if operators else ""


def certificate(report: Report) -> list[tuple[str, str]]:
    """What the cut proved, as rows; [] where it was not made."""
    cut, rows = report.surgery, list[tuple[str, str]]()
    if cut.channels_before is None:
        return rows
    if cut.law is None:
        rows.append(("Law in float64", f"not checked: {cut.reasons['law']}"))
    else:
        held = " (channels measured dead held at zero in it)" if cut.law.held else ""
        held += in_single(cut.law.single)
        rows += [
            ("Law in float64", f"compact computes what dense computes{held}"),
            ("Largest relative difference", f"{numbers.small(cut.law.max_rel_diff)}, allowed {cut.law.tolerance:g}"),
            ("Checked on", "; ".join(cut.law.inputs)),
        ]
    rows.append(("Largest difference in float32", numbers.small(cut.max_abs_diff)))
    if cut.evidence:
        rows.append(("Removed by proof from the weights", numbers.count(cut.evidence.by_proof)))
        rows.append(("Removed by measurement", numbers.count(cut.evidence.by_measurement)))
    if cut.removed_in_training:
        most = (
            "" if cut.removal_rel_diff is None else f", no cut changed more than {numbers.small(cut.removal_rel_diff)}"
        )
        rows.append(("Removed during training, dead in a census", f"{numbers.count(cut.removed_in_training)}{most}"))
    if cut.confirmation:
        again, largest = cut.confirmation, max(cut.confirmation.largest_activation.values(), default=0.0)
        revived = f"{again.images:,} training images, {again.revived} channels of the last census found alive on them"
        rows.append(("Deaths confirmed on", revived))
        if again.approximate:
            names = ", ".join(again.approximate)
            rows.append(("Approximate", f"{names}: dead channels reach {numbers.small(largest)} there, not 0"))
    for split, moved in (("test", cut.change.test), ("training", cut.change.train)) if cut.change else ():
        if moved is not None:
            told = f"{numbers.small(moved.max_abs)} at most, {moved.top1_changed} answers changed"
            rows.append((f"Outputs against the trained network, {moved.images:,} {split} images", told))
    rows.append(("Layers whose bias took up constants", numbers.count(len(cut.folded))))
    return rows


def wilson(report: Report, accuracy: float) -> tuple[float, float] | None:
    """95 % Wilson interval of a test accuracy, as fractions; None where the number of images is unknown."""
    from scipy.stats import binomtest

    if report.accuracy_difference is None:
        return None
    images = report.accuracy_difference.n
    interval = binomtest(round(accuracy * images), images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_with_interval(report: Report, value: float | None) -> str:
    """`98.99 % (97.4 to 99.6)`, with Wilson's 95 % interval."""
    interval = None if value is None else wilson(report, value)
    return numbers.percent(value) + (f" {numbers.between(100 * interval[0], 100 * interval[1], 1)}" if interval else "")


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _smaller(label: str, pair: tuple[float | None, float | None], form: Callable[[float | None], str]) -> Comparison:
    dense, compact = pair
    known = dense is not None and compact is not None and dense > 0 and compact > 0
    change = numbers.ratio(dense / compact) if known and dense and compact else ""
    return Comparison(
        label, form(dense), form(compact), change, compact / dense if known and dense and compact else None
    )
