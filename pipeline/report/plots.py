"""Plots as self-contained SVG data addresses, one per width and colour scheme; the page's CSS chooses.

The look is fixed here once: transparent ground, text kept as text, dense grey, compact green, deaths orange.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Scheme = Literal["light", "dark"]
Role = Literal["dense", "compact"]
WIDE_IN, NARROW_IN = 7.1, 3.65  # 682 and 350 CSS pixels at the 96 a CSS inch has

PALETTE: dict[Scheme, dict[str, str]] = {
    "light": {
        "ink": "#1d1c1a",
        "muted": "#6b6762",
        "line": "#dedad3",
        "dense": "#7d7870",
        "compact": "#0b6b63",
        "dead": "#b8500f",
    },
    "dark": {
        "ink": "#ece9e3",
        "muted": "#a39d95",
        "line": "#3a3835",
        "dense": "#a8a29a",
        "compact": "#55c7b8",
        "dead": "#ee9a5f",
    },
}


@dataclass(frozen=True)
class Picture:
    """Four `data:image/svg+xml` addresses of one plot, and a sentence for those who cannot see it."""

    light_wide: str
    light_narrow: str
    dark_wide: str
    dark_narrow: str
    alt: str


@dataclass(frozen=True)
class Span:
    """A measured value with its 95 % interval (None: no interval known), on a row of a dot plot."""

    row: str
    role: Role
    value: float
    low: float | None
    high: float | None


def intervals(
    spans: Sequence[Span], *, axis: str, alt: str, marks: Sequence[tuple[float, str]] = (), from_zero: bool = False
) -> Picture:
    """A dot with a 95 % whisker per span, a row per `Span.row`, the first on top; `marks` are vertical lines."""
    names = list(dict.fromkeys(span.row for span in spans))

    def draw(figure: Figure, colours: dict[str, str]) -> None:
        axes: Axes = figure.subplots()
        for x, label in marks:
            axes.axvline(x, color=colours["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
            outward = "right" if len(marks) > 1 and x == min(at for at, _ in marks) else "left"
            top = axes.get_xaxis_transform()
            axes.text(x, 1.02, label, transform=top, ha=outward, color=colours["muted"], fontsize=8)
        for span in spans:
            y = names.index(span.row) + _offset(span, spans)
            colour = colours[span.role]
            if span.low is not None and span.high is not None:
                axes.plot([span.low, span.high], [y, y], color=colour, linewidth=1.4)
            axes.plot([span.value], [y], color=colour, marker="o", markersize=5, linestyle="none")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        if from_zero:
            axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis)

    return picture(draw, height_in=0.75 + 0.34 * len(names), alt=alt)


def _offset(span: Span, spans: Sequence[Span]) -> float:
    """Dense a little above and compact a little below the row's middle, where a row holds both."""
    if len({other.role for other in spans if other.row == span.row}) < 2:
        return 0.0
    return -0.14 if span.role == "dense" else 0.14


def picture(draw: Callable[[Figure, dict[str, str]], None], *, height_in: float, alt: str) -> Picture:
    def address(scheme: Scheme, width_in: float) -> str:
        colours = PALETTE[scheme]
        with matplotlib.rc_context(_style(colours)):
            figure = Figure(figsize=(width_in, height_in), layout="constrained")
            draw(figure, colours)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

    return Picture(
        light_wide=address("light", WIDE_IN),
        light_narrow=address("light", NARROW_IN),
        dark_wide=address("dark", WIDE_IN),
        dark_narrow=address("dark", NARROW_IN),
        alt=alt,
    )


def _style(colours: dict[str, str]) -> dict[Any, Any]:
    """Matplotlib's settings for one scheme; text stays text, and the same figures give the same bytes."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "demport",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": colours["ink"],
        "axes.labelcolor": colours["muted"],
        "axes.labelsize": 9,
        "axes.edgecolor": colours["line"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": colours["line"],
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "xtick.color": colours["line"],
        "ytick.color": colours["line"],
        "xtick.labelcolor": colours["muted"],
        "ytick.labelcolor": colours["muted"],
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }
