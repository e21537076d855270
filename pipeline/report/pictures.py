"""Which figures of a run become which plot; a plot without data is None and the page says what was not run."""

from __future__ import annotations

from collections.abc import Sequence

from . import plots
from .schema import ModelFigures, Report
from .view import Epoch, Source, latency_rows, wilson


def training_picture(source: Source) -> plots.Picture | None:
    trainings: list[tuple[str, plots.Role, Sequence[Epoch]]] = [
        ("dense", "dense", source.dense),
        ("DemP", "compact", source.demp),
    ]
    curves = [_curve(*training) for training in trainings if any(epoch.accuracy is not None for epoch in training[2])]
    return plots.training(curves) if curves else None


def accuracy_picture(report: Report) -> plots.Picture | None:
    """Test accuracy at every hop, with its 95 % interval."""
    spans = [
        plots.Span(hop, role, 100 * value, *_percent(wilson(report, value)))
        for role, figures in _models(report)
        for hop, value in figures.accuracy.items()
        if value is not None
    ]
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


def _models(report: Report) -> tuple[tuple[plots.Role, ModelFigures], ...]:
    return ("dense", report.models.dense), ("compact", report.models.compact)


def _curve(label: str, role: plots.Role, epochs: Sequence[Epoch]) -> plots.Curve:
    return plots.Curve(
        label=label,
        role=role,
        epochs=[epoch.epoch for epoch in epochs],
        accuracy=[float("nan") if epoch.accuracy is None else 100 * epoch.accuracy for epoch in epochs],
        dead=[
            None if epoch.dead is None or not epoch.channels else 100 * epoch.dead / epoch.channels for epoch in epochs
        ],
    )


def _percent(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (100 * interval[0], 100 * interval[1])
