"""Plots of speed: distributions of launches, a sweep over batch sizes, time by layer, and runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plots import Picture, Role, picture

ROLES: tuple[Role, Role] = ("dense", "compact")
LAYERS = 20  # bars in one plot


@dataclass(frozen=True)
class Bar:
    """A layer's microseconds in both networks, and the least that compact's could take."""

    layer: str
    dense: float
    compact: float
    floor: float


@dataclass(frozen=True)
class Dot:
    """A network of a run: its latency on the plot's axis and its accuracy in percent, each with its 95 % interval where
    one is known."""

    label: str
    role: Role
    latency: float
    accuracy: float
    accuracy_interval: tuple[float, float] | None
    latency_interval: tuple[float, float] | None = None


def distributions(samples: dict[Role, Sequence[float]]) -> Picture:
    """Share of launches that took at most so long, in ms; the slowest half percent lies outside."""

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        axes: Axes = figure.subplots()
        ends = []
        for role, values in samples.items():
            ordered = np.sort(np.asarray(values, float))
            axes.step(ordered, 100 * np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=colours[role])
            axes.axvline(float(np.median(ordered)), color=colours[role], linewidth=0.8, linestyle=(0, (4, 3)))
            ends.append((float(ordered[0]), float(np.quantile(ordered, 0.995))))
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        if high > 4 * low > 0:
            _log_axis(axes, low / 1.1, high * 1.1)
        else:
            axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9)
        axes.set_xlabel("ms a launch")
        axes.set_ylabel("launches, %")
        axes.set_ylim(0, 102)

    return picture(draw, height_in=2.4, alt="Distribution of the launch times of the dense and the compact network.")


def sweep(batches: Sequence[int], images_per_s: dict[Role, Sequence[float]]) -> Picture:
    """Images a second over the batch size, both axes logarithmic."""

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        axes: Axes = figure.subplots()
        for role, values in images_per_s.items():
            axes.plot(batches, values, color=colours[role], marker="o", markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(batches), [str(batch) for batch in batches])
        axes.minorticks_off()
        values = [value for line in images_per_s.values() for value in line]
        axes.set_yscale("log")
        ticks = _round_ticks(min(values), max(values))
        axes.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("images a launch")
        axes.set_ylabel("images a second, at p50")

    return picture(draw, height_in=2.5, alt="Throughput of the dense and the compact network over the batch size.")


def layers(bars: Sequence[Bar]) -> Picture:
    """Two bars a layer, dense above compact, with a tick where the roofline puts compact's least time."""
    shown = sorted(bars, key=lambda bar: -max(bar.dense, bar.compact))[:LAYERS]
    ordered = [bar for bar in bars if bar in shown]

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        axes: Axes = figure.subplots()
        rows = np.arange(len(ordered))
        axes.barh(rows - 0.19, [bar.dense for bar in ordered], 0.34, color=colours["dense"])
        axes.barh(rows + 0.19, [bar.compact for bar in ordered], 0.34, color=colours["compact"])
        floors = [bar.floor for bar in ordered]
        axes.vlines(floors, rows + 0.0, rows + 0.38, color=colours["dead"], linewidth=1.6)
        axes.set_yticks(rows, [short(bar.layer) for bar in ordered])
        axes.set_ylim(len(ordered) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("us a run, with the profiler on")

    return picture(draw, height_in=0.75 + 0.34 * len(ordered), alt="Time of each layer in both networks.")


def pareto(dots: Sequence[Dot], axis: str) -> Picture:
    """Accuracy over latency; the line joins what nothing else beats in both."""

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        axes: Axes = figure.subplots()
        best = frontier(dots)
        axes.plot([dot.latency for dot in best], [dot.accuracy for dot in best], color=colours["line"], linewidth=1.2,
                  drawstyle="steps-post", zorder=1)  # fmt: skip
        together: dict[tuple[float, float], list[str]] = {}
        for number, dot in enumerate(dots, 1):
            if dot.accuracy_interval:
                axes.plot([dot.latency] * 2, dot.accuracy_interval, color=colours[dot.role], linewidth=1.2, alpha=0.6)
            if dot.latency_interval:
                axes.plot(dot.latency_interval, [dot.accuracy] * 2, color=colours[dot.role], linewidth=1.2, alpha=0.6)
            axes.plot(
                [dot.latency], [dot.accuracy], color=colours[dot.role], marker="o", markersize=6, linestyle="none"
            )
            together.setdefault((dot.latency, dot.accuracy), []).append(str(number))
        for place, numbers in together.items():
            axes.annotate(", ".join(numbers), place, textcoords="offset points", xytext=(6, 4), fontsize=9)
        times = [dot.latency for dot in dots]
        if max(times) > 4 * min(times):
            _log_axis(axes, min(times) / 1.3, max(times) * 1.3)
        axes.set_xlabel(axis)
        axes.set_ylabel("test accuracy, %")

    return picture(draw, height_in=3.6, alt="Accuracy over latency of every run; numbers are those of the table.")


def frontier(dots: Sequence[Dot]) -> list[Dot]:
    """Those that no other is both faster than and at least as accurate as, the fastest first."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.latency, -dot.accuracy)):
        if not best or dot.accuracy > best[-1].accuracy:
            best.append(dot)
    return best


def _log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = _round_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range, every second one where they are many."""
    powers = range(ceil(np.log10(low)) - 2, ceil(np.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    step = 1 + len(inside) // 8
    return inside[::step] or [2.0 ** round(log2((low * high) ** 0.5))]


def short(name: str) -> str:
    return name if len(name) <= 22 else f"...{name[-20:]}"
