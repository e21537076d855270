"""Which figures of a run become which plot; a plot without data is None and the page says what was not run."""

from __future__ import annotations

from . import plots, speed_plots, speed_view
from .schema import ModelFigures, Report
from .speed_schema import Why
from .view import Source, headline_latency, latency_rows, wilson


def accuracy_picture(report: Report) -> plots.Picture | None:
    """Test accuracy at every hop, with its 95 % interval."""
    spans = [
        plots.Span("before the cut" if hop == "masked" else hop, role, 100 * value, *_percent(wilson(report, value)))
        for role, figures in _models(report)
        for hop, value in figures.accuracy.items()
        if value is not None
    ]
    spans.sort(key=lambda span: span.row != "before the cut")
    alt = "Test accuracy of the dense and the compact network at every hop, with 95 % intervals."
    return plots.intervals(spans, axis="test accuracy, %", alt=alt) if spans else None


def speedup_picture(report: Report) -> plots.Picture | None:
    """Dense over compact p50 latency for each backend, precision and batch, beside 1 and the gate's limit."""
    spans = [
        plots.Span(f"{row.backend} {row.precision}\nbatch {row.batch}", "compact", speedup.ratio, *speedup.ci95)
        for row in latency_rows(report)
        if (speedup := row.figures.speedup)
    ]
    limits = [
        (gate.limit, "gate") for gate in report.verdict.gates if gate.name == "min_speedup" and gate.limit is not None
    ]
    alt = "Speedup of the compact over the dense network, with 95 % intervals."
    return (
        plots.intervals(spans, axis="dense p50 / compact p50", alt=alt, marks=[(1.0, "same"), *limits])
        if spans
        else None
    )


def shares(source: Source) -> list[plots.Span]:
    """Compact as percent of dense, what is smaller being better; latency with its 95 % interval."""
    dense, compact = source.report.models.dense, source.report.models.compact
    spans = []
    row = headline_latency(source)
    if row and (speedup := row.figures.speedup):
        low, high = speedup.ci95
        spans.append(plots.Span("latency p50", "compact", 100 / speedup.ratio, 100 / high, 100 / low))
    sizes = {"MACs": (dense.macs, compact.macs), "parameters": (dense.params, compact.params),
             "channels": (dense.channels, compact.channels), "ONNX file": (dense.bytes, compact.bytes)}  # fmt: skip
    spans += [
        plots.Span(name, "compact", 100 * after / before, None, None)
        for name, (before, after) in sizes.items()
        if before and after
    ]
    return spans


def share_picture(source: Source) -> plots.Picture | None:
    spans = shares(source)
    alt = "Latency, MACs, parameters, channels and file size of compact, in percent of dense."
    marks = [(100.0, "dense")]
    return plots.intervals(spans, axis="compact, % of dense", alt=alt, marks=marks, from_zero=True) if spans else None


def distribution_picture(source: Source) -> plots.Picture | None:
    samples = speed_view.headline_samples(source)
    if samples is None:
        return None
    return speed_plots.distributions({role: samples[role] for role in speed_plots.ROLES})


def sweep_picture(source: Source) -> plots.Picture | None:
    """Images a second at the p50 over the batch size; None with fewer than two sizes."""
    rows = speed_view.swept(source)
    if not rows:
        return None
    dense = [1000 * row.batch / timing.p50_ms for row in rows if (timing := row.figures.dense)]
    compact = [1000 * row.batch / timing.p50_ms for row in rows if (timing := row.figures.compact)]
    return speed_plots.sweep([row.batch for row in rows], {"dense": dense, "compact": compact})


def layers_picture(why: Why) -> plots.Picture:
    """Microseconds of every layer in both networks."""
    return speed_plots.layers(
        [speed_plots.Bar(layer.layer, layer.dense_us, layer.compact_us, layer.floor_us) for layer in why.layers]
    )


def _models(report: Report) -> tuple[tuple[plots.Role, ModelFigures], ...]:
    return ("dense", report.models.dense), ("compact", report.models.compact)


def _percent(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (100 * interval[0], 100 * interval[1])
