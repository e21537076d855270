"""Plots of trainings over their epochs: accuracy, what drove the deaths, and which layers they took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .plots import Picture, Role, picture
from .speed_plots import short

MANY_LAYERS = 24  # more are drawn in thinner rows


@dataclass(frozen=True)
class Curve:
    """One training: `epochs`, test accuracy in percent, and percent of the channels dead (None where not counted)."""

    label: str
    role: Role
    epochs: Sequence[int]
    accuracy: Sequence[float]
    dead: Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """One figure of one training over its epochs; NaN where there is none. `colour` is a key of the palette."""

    label: str
    colour: str
    epochs: Sequence[int]
    values: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that share an axis; `log` for values over several powers of ten."""

    axis: str
    lines: Sequence[Line]
    log: bool = False


@dataclass(frozen=True)
class Deaths:
    """Of one layer, over the epochs: the share of its channels dead, and of that removed already, 0..1."""

    layer: str
    dead: Sequence[float]
    removed: Sequence[float]


def training(curves: Sequence[Curve]) -> Picture:
    """Test accuracy over epochs, and under it the share of dead channels where one was counted."""
    deaths = [curve for curve in curves if any(value is not None for value in curve.dead)]

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        rows = figure.subplots(
            2 if deaths else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if deaths else [1]
        )
        top: Axes = rows[0, 0]
        for curve in curves:
            top.plot(
                curve.epochs, curve.accuracy, color=colours[curve.role], label=curve.label, marker=_marker(curve.epochs)
            )
        top.set_ylabel("test accuracy, %")
        top.set_ylim(bottom=_floor(curves))
        top.legend(loc="lower right")
        for curve in deaths:
            dead = [float("nan") if value is None else value for value in curve.dead]
            rows[1, 0].plot(curve.epochs, dead, color=colours["dead"], marker=_marker(curve.epochs))
            rows[1, 0].set_ylabel("dead channels, %")
            rows[1, 0].set_ylim(0, max(rows[1, 0].get_ylim()[1], 5))
        _epochs(rows[-1, 0])

    return picture(
        draw, height_in=3.9 if deaths else 2.4, alt="Test accuracy and dead channels over the epochs of training."
    )


def course(panels: Sequence[Panel]) -> Picture:
    """Panels one under the other over the same epochs, each from zero unless logarithmic."""

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            for line in panel.lines:
                style = (0, (3, 2)) if line.dashed else "solid"
                axes.plot(
                    line.epochs,
                    line.values,
                    color=colours[line.colour],
                    label=line.label,
                    linestyle=style,
                    marker=_marker(line.epochs),
                )
            if panel.log:
                axes.set_yscale("log")
                axes.minorticks_off()
            else:
                axes.set_ylim(bottom=0)
            axes.set_title(panel.axis, loc="left", fontsize=9, color=colours["muted"])
            axes.legend(loc="best", fontsize=8)
        _epochs(rows[-1])

    names = ", ".join(panel.axis for panel in panels)
    return picture(draw, height_in=0.4 + 1.25 * len(panels), alt=f"Over the epochs of training: {names}.")


def deaths(epochs: Sequence[int], layers: Sequence[Deaths]) -> Picture:
    """A row per layer, full height for all of its channels: pale what is dead, full colour what is removed."""
    many = len(layers) > MANY_LAYERS

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        axes: Axes = figure.subplots()
        for row, layer in enumerate(layers):
            ground = row + 0.42
            axes.axhline(ground, color=colours["line"], linewidth=0.6)
            for share, alpha in ((layer.dead, 0.4), (layer.removed, 1.0)):
                at = steps(share)
                tops = [ground - 0.84 * share[i] for i in at]
                where = [epochs[i] for i in at]
                axes.fill_between(where, ground, tops, color=colours["dead"], alpha=alpha, linewidth=0, step="post")
        axes.set_yticks(range(len(layers)), [short(layer.layer) for layer in layers], fontsize=6.5 if many else 9)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        _epochs(axes)

    return picture(
        draw,
        height_in=0.6 + (0.16 if many else 0.3) * len(layers),
        alt="Dead and removed channels of each layer over the epochs of training.",
    )


def steps(values: Sequence[float]) -> list[int]:
    """Indices where a value differs from the one before, the first and the last: all that a step needs."""
    inner = [i for i in range(1, len(values) - 1) if values[i] != values[i - 1]]
    return sorted({0, *inner, len(values) - 1})


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _floor(curves: Sequence[Curve]) -> float | None:
    """The lowest accuracy after a quarter of the epochs, so that the first climb does not flatten the rest."""
    later = [value for curve in curves for value in curve.accuracy[len(curve.accuracy) // 4 :] if math.isfinite(value)]
    return max(0.0, min(later) - 0.2 * (max(later) - min(later))) if later and max(later) > min(later) else None


def _marker(epochs: Sequence[int]) -> str:
    return "o" if len(epochs) == 1 else ""
