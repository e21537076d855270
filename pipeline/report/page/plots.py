"""Every plot, drawn once: an SVG that stands in the page and takes its colours from the page's CSS variables.

Text stays text, the ground is transparent: light, dark and paper need no drawing of their own.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.check.results import Role
from pipeline.report.page import Picture

WIDTH_IN = 5.4  # 518 CSS pixels: legible on a phone, and beside another plot on a wide screen
# Matplotlib knows no CSS variables: it draws in colours that no plot has, which are replaced by them.
COLOURS = {name: f"#0123{at:02x}" for at, name in enumerate(("ink", "muted", "line", "dense", "compact", "dead"))}
NETWORKS = (("is-dense", "dense"), ("is-compact", "compact"))


@dataclass(frozen=True)
class Span:
    """A measured value with its 95 % interval (None: no interval known), on a row of a dot plot."""

    row: str
    role: Role
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """One figure over the epochs; NaN where there is none. `colour` is a key of COLOURS."""

    label: str
    colour: str
    epochs: Sequence[int]
    values: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that share an axis; `log` for values over several powers of ten, else from `bottom`."""

    axis: str
    lines: Sequence[Line]
    log: bool = False
    bottom: float | None = 0.0
    height: float = 1.0


def intervals(
    title: str,
    spans: Sequence[Span],
    *,
    axis: str,
    alt: str,
    marks: Sequence[tuple[float, str]] = (),
    key: Sequence[tuple[str, str]] = (),
) -> Picture:
    """A dot with a 95 % whisker per span, a row per `Span.row`, the first on top; `marks` are vertical lines."""
    names = list(dict.fromkeys(span.row for span in spans))

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        for x, label in marks:
            axes.axvline(x, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
            outward = "right" if len(marks) > 1 and x == min(at for at, _ in marks) else "left"
            top = axes.get_xaxis_transform()
            axes.text(x, 1.02, label, transform=top, ha=outward, color=COLOURS["muted"], fontsize=8)
        for span in spans:
            y = names.index(span.row) + _offset(span, spans)
            colour = COLOURS[span.role]
            if span.low is not None and span.high is not None:
                axes.plot([span.low, span.high], [y, y], color=colour, linewidth=1.6)
            axes.plot([span.value], [y], color=colour, marker="o", markersize=5.5, linestyle="none")
        rows(axes, names)
        axes.set_xlabel(axis)

    return picture(title, draw, height_in=0.75 + 0.3 * len(names), alt=alt, key=key)


def _offset(span: Span, spans: Sequence[Span]) -> float:
    """Dense a little above and compact a little below the row's middle, where a row holds both."""
    if len({other.role for other in spans if other.row == span.row}) < 2:
        return 0.0
    return -0.14 if span.role == "dense" else 0.14


def course(title: str, panels: Sequence[Panel], alt: str, key: Sequence[tuple[str, str]] = ()) -> Picture:
    """Panels one under the other over the same epochs."""

    def draw(figure: Figure) -> None:
        heights = [panel.height for panel in panels]
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, panel in zip(grid, panels, strict=True):
            for line in panel.lines:
                marker = "o" if len(line.epochs) == 1 else ""
                style = (0, (3, 2)) if line.dashed else "solid"
                colour = COLOURS[line.colour]
                axes.plot(line.epochs, line.values, color=colour, label=line.label, linestyle=style, marker=marker)
            if panel.log:
                axes.set_yscale("log")
                axes.minorticks_off()
            elif panel.bottom is not None:
                axes.set_ylim(bottom=panel.bottom)
            axes.set_title(panel.axis, loc="left", fontsize=9, color=COLOURS["muted"])
            if len(panel.lines) > 1:
                axes.legend(loc="best", fontsize=8)
        epoch_axis(grid[-1])

    return picture(title, draw, height_in=0.4 + 1.25 * sum(panel.height for panel in panels), alt=alt, key=key)


def short(name: str) -> str:
    return name if len(name) <= 22 else f"...{name[-20:]}"


def rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = round_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range, every second one where they are many."""
    powers = range(ceil(np.log10(low)) - 2, ceil(np.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    step = 1 + len(inside) // 8
    return inside[::step] or [2.0 ** round(log2((low * high) ** 0.5))]


def picture(
    title: str, draw: Callable[[Figure], None], *, height_in: float, alt: str, key: Sequence[tuple[str, str]] = ()
) -> Picture:
    with matplotlib.rc_context(_style(f"{title} {alt}")):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(title, _inline(buffer.getvalue(), alt), alt, key)


def _inline(svg: str, alt: str) -> str:
    """Matplotlib's file as an element of the page: no prolog, no metadata, no style of its own, no identifier that
    nothing refers to (plots of one page would share them), and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL).replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box, "matplotlib writes a viewBox"
    head = f'<svg class="plot" role="img" aria-label="{html.escape(alt)}" {box[0]}>'
    svg = head + svg[svg.index(">") + 1 :]
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*", " ", svg).strip()


def _style(salt: str) -> Any:
    """Text stays text, and the same figures give the same bytes; `salt` keeps identifiers of one page apart."""
    ink, muted, line = (COLOURS[name] for name in ("ink", "muted", "line"))
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.labelsize": 9,
        "axes.edgecolor": line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "legend.frameon": False,
        "lines.linewidth": 1.7,
    }
