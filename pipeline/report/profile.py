"""Where the time of a run goes, layer by layer, and why compact is not as fast as it is small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.check.results import Why
from pipeline.report.collect import CHECK
from pipeline.report.page import Block, Cell, Heading, Picture, Plots, Rows, Table, Text, numbers
from pipeline.report.page.plots import COLOURS, NETWORKS, picture, rows, short

SOURCE = f"{CHECK}/check.json"
BARS = 20  # layers in one plot
BOUNDS = {
    "compute": "arithmetic",
    "memory": "memory",
    "launch": "the cost of starting operations",
    "reformat": "changes of layout or type",
    "between": "what happens between operations",
}


@dataclass(frozen=True)
class Bar:
    """A layer's microseconds in both networks, and the least that compact's could take."""

    layer: str
    dense: float
    compact: float
    floor: float


def explanation(why: Why) -> list[Block]:
    """Of a backend on which the time fell by much less than the work: the causes, and what to try."""
    threads = f", {why.threads} thread{'s' if why.threads > 1 else ''}" if why.threads else ""
    sentence = (
        f"On {why.where}, batch {why.batch}{threads}, the time fell by {100 * why.share:.0f} % of what the MACs fell "
        f"by. Most of compact's run is bound by {BOUNDS[why.verdict]} ({why.bound_pct[why.verdict]:.0f} %)."
    )
    cells: Rows = [[f.what, f"{f.pct:.0f} %" if f.pct else "", Cell(f.remedy, kind="wide")] for f in why.findings]
    layers = "Each layer is below, under Where the time goes."
    return [Text(sentence, "remark"), Table(("Cause", "Of a run", "Try next"), cells, (1,)), Text(layers, "source")]


def blocks(why: Why) -> Iterator[Block]:
    """Both networks under the runtime's profiler."""
    yield Heading(f"{why.where}, batch {why.batch}")
    yield Text(f"{SOURCE}; one run under the runtime's profiler. {roofline(why)}", "source")
    bars = [Bar(layer.layer, layer.dense_us, layer.compact_us, layer.floor_us) for layer in why.layers]
    yield Plots([layers_picture("Time of each layer", bars)])
    yield Table(("Part", "Dense", "Compact"), parts(why), (1, 2))
    cells: Rows = [
        [
            layer.layer,
            f"{layer.channels_before} to {layer.channels_after}"
            + (f" (runs as {w})" if (w := layer.width) and layer.channels_after and w > layer.channels_after else ""),
            f"{numbers.short(layer.dense_macs)} to {numbers.short(layer.compact_macs)}",
            f"{numbers.significant(layer.dense_us)} to {numbers.significant(layer.compact_us)}",
            numbers.significant(layer.floor_us),
            layer.bound,
        ]
        for layer in why.layers
    ]
    heads = ("Layer", "Channels", "MACs", "Time, us", "Least, us", "Bound by")
    yield Table(heads, cells, (1, 2, 3, 4), "Layer by layer")


def parts(why: Why) -> list[tuple[str, str, str]]:
    names = {
        "run_us": "A run",
        "layers_us": "in layers with weights",
        "other_us": "in other operators",
        "reformat_us": "changing layouts and types",
        "between_us": "between operators",
    }
    both = (why.time.dense, why.time.compact)
    times = [
        (label, *(f"{numbers.significant(getattr(run, key))}{numbers.GAP}us" for run in both))
        for key, label in names.items()
    ]
    dense, compact = (str(sum(run.kernels.values())) for run in both)
    return [*((label, d, c) for label, d, c in times), ("operators", dense, compact)]


def roofline(why: Why) -> str:
    """The device's limits in a sentence."""
    line = why.roofline
    rates = ", ".join(f"{speed:.0f}{numbers.GAP}GB/s at {numbers.binary(size)}" for size, speed in line["bandwidth"])
    return (
        f"This device at best, measured with {line['backend']}: {line['peak_gflops']:.0f}{numbers.GAP}GFLOP/s; memory "
        f"{rates}; {line['op_us']:.2f}{numbers.GAP}us an operator, {line['run_us']:.1f}{numbers.GAP}us a run."
    )


def layers_picture(title: str, bars: Sequence[Bar]) -> Picture:
    """Two bars a layer, dense above compact, with a tick where the roofline puts compact's least time."""
    slowest = sorted(bars, key=lambda bar: -max(bar.dense, bar.compact))[:BARS]
    ordered = [bar for bar in bars if bar in slowest]

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        at = np.arange(len(ordered))
        axes.barh(at - 0.19, [bar.dense for bar in ordered], 0.34, color=COLOURS["dense"])
        axes.barh(at + 0.19, [bar.compact for bar in ordered], 0.34, color=COLOURS["compact"])
        floors = [bar.floor for bar in ordered]
        axes.vlines(floors, at, at + 0.38, color=COLOURS["dead"], linewidth=1.6)
        rows(axes, [short(bar.layer) for bar in ordered])
        axes.set_xlabel("us a run, with the profiler on")

    key = (*NETWORKS, ("is-dead", "least time of compact by the roofline"))
    alt = "Time of each layer in both networks."
    return picture(title, draw, height_in=0.75 + 0.3 * len(ordered), alt=alt, key=key)
