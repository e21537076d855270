"""What the report shows of the two trainings: the figures of history.jsonl, as plots and as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.check.reading import damaged
from pipeline.report.method import figures_of, figures_picture, figures_table
from pipeline.report.page import Block, Picture, Plots, Section, Table, Text, numbers
from pipeline.report.page.plots import COLOURS, Line, Panel, course, epoch_axis, picture, rows, short

MOMENTS = 5  # columns of the table of layers
MANY_LAYERS = 24  # more are drawn in thinner rows


@dataclass(frozen=True)
class Epoch:
    """A line of history.jsonl; what a training does not have, for its method has no such figure, is None. `penalty` is
    lambda; `accuracy` the task's metric, whose name is `metric`."""

    epoch: int
    loss: float | None
    metric: str
    split: str
    """Whose images it is of."""
    accuracy: float | None
    """Its value."""
    lr: float | None
    seconds: float | None
    images_per_s: float | None
    macs: int | None
    penalty: float | None
    sigma: float | None
    dead: int | None
    channels: int | None
    removed: int
    """In this epoch."""
    dead_by_layer: Mapping[str, int]
    removed_by_layer: Mapping[str, int]
    """So far, as are the dead, who include them."""
    channels_by_layer: Mapping[str, int]
    figures: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the method's own."""


@dataclass(frozen=True)
class Deaths:
    """Of one layer, over the epochs: the share of its channels dead, and of that removed already, 0..1."""

    layer: str
    dead: Sequence[float]
    removed: Sequence[float]


def epochs_of(content: bytes, path: Path) -> list[Epoch]:
    """The epochs of a training, from the bytes of its history.jsonl. UserError where it is damaged."""
    try:
        return [_epoch(json.loads(line)) for line in content.decode().splitlines() if line.strip()]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def _epoch(row: Mapping[str, Any]) -> Epoch:
    plain = ("loss", "lr", "seconds", "images_per_s", "macs", "sigma", "dead", "channels")
    tables = ("dead_by_layer", "removed_by_layer", "channels_by_layer")
    figures: dict[str, Any] = {name: row.get(name) for name in plain}
    figures["metric"] = str(row.get("metric", "accuracy"))
    figures["split"] = str(row.get("split", "test"))
    figures["accuracy"] = row.get(figures["metric"])
    figures |= {name: dict(row.get(name) or {}) for name in tables}
    own = {name: value for name, value in figures_of(row).items() if name != figures["metric"]}
    removed = sum(removal["channels"] for removal in row.get("removals") or ())
    return Epoch(epoch=row["epoch"], penalty=row.get("lambda"), removed=removed, figures=own, **figures)


def section(dense: Sequence[Epoch], sparse: Sequence[Epoch], files: Sequence[str]) -> Section:
    """`files`: history.jsonl of both, as the run folder calls them."""
    if not dense and not sparse:
        stages = " and ".join(file.split("/")[0] for file in files)
        return Section("Training", [Text(f"Not run: stages {stages}.", "absent")])
    at, own = moments(sparse), [(epoch.epoch, epoch.figures) for epoch in sparse]
    pictures = [accuracy_picture(dense, sparse), course_picture(dense, sparse), layers_picture(sparse)]
    blocks: list[Block] = [
        Text(", ".join(file for file, epochs in zip(files, (dense, sparse), strict=True) if epochs), "source"),
        Plots([*pictures, figures_picture(own)]),
        *(_epoch_table(label, epochs) for label, epochs in (("Dense", dense), ("Sparse", sparse)) if epochs),
    ]
    if any(epoch.penalty is not None for epoch in sparse):
        blocks.append(_pressure_table(sparse))
    if (table := figures_table(own)) is not None:
        blocks.append(table)
    if at:
        heads = ["Layer", "Channels", *(f"Epoch {epoch.epoch}" for epoch in at)]
        summary = "Layers: channels dead, and of these removed"
        blocks.append(Table(heads, layer_rows(sparse), range(1, len(heads)), summary))
    return Section("Training", blocks)


def _epoch_table(label: str, epochs: Sequence[Epoch]) -> Table:
    cells = [
        (
            str(e.epoch),
            numbers.plain(e.loss),
            numbers.percent(e.accuracy),
            numbers.small(e.lr),
            numbers.count(e.images_per_s),
        )
        for e in epochs
    ]
    heads = ("Epoch", "Loss", numbers.capital(epochs[-1].metric), "Learning rate", "Images/s")
    return Table(heads, cells, range(1, 5), f"{label} training, epoch by epoch")


def _pressure_table(epochs: Sequence[Epoch]) -> Table:
    cells = [
        (
            str(e.epoch),
            numbers.small(e.penalty),
            numbers.small(e.sigma),
            numbers.short(e.macs),
            "" if e.dead is None else numbers.count(e.dead),
            str(e.removed),
        )
        for e in epochs
    ]
    heads = ("Epoch", "Lambda", "Sigma", "MACs", "Dead", "Removed now")
    return Table(heads, cells, range(1, 6), "Pressure and deaths, epoch by epoch")


def accuracy_picture(dense: Sequence[Epoch], sparse: Sequence[Epoch]) -> Picture | None:
    """Accuracy of both, and the share of dead channels."""
    both = (("dense", "dense", dense), ("sparse", "compact", sparse))
    curves = [_line(label, colour, epochs, lambda e: _times(100, e.accuracy)) for label, colour, epochs in both]
    curves = [line for line in curves if _drawn(line)]
    if not curves:
        return None
    metric, split = (*dense, *sparse)[-1].metric, (*dense, *sparse)[-1].split
    panels = [Panel(f"{split} {metric}, %", curves, bottom=_floor(curves), height=2.0)]
    dead = _line("dead", "dead", sparse, _dead)
    if _drawn(dead):
        panels.append(Panel("dead channels, %", [dead]))
    alt = f"{split.capitalize()} {metric} and dead channels over the epochs of training."
    return course(f"{numbers.capital(metric)} and dead channels", panels, alt)


def course_picture(dense: Sequence[Epoch], sparse: Sequence[Epoch]) -> Picture | None:
    """Loss, lambda and sigma, MACs, dead and removed channels, and speed; None without a sparse training."""
    penalty, sigma = (_peak(sparse, get) for get in (lambda e: e.penalty, lambda e: e.sigma))
    whole = next((e.macs for e in dense if e.macs), None) or max((e.macs or 0 for e in sparse), default=0)
    panels = [
        _both("loss", (dense, sparse), lambda e: e.loss, log=True),
        Panel("lambda and sigma, % of their peaks", [
            _line(f"lambda, peak {numbers.small(penalty)}", "compact", sparse, _share_of(penalty, lambda e: e.penalty)),
            _line(f"sigma, peak {numbers.small(sigma)}", "dead", sparse, _share_of(sigma, lambda e: e.sigma), True),
        ]),
        Panel("MACs an image, % of dense", [_line("sparse", "compact", sparse, _share_of(whole, lambda e: e.macs))]),
        Panel("channels, %", [
            _line("dead", "dead", sparse, _dead),
            _line("removed", "compact", sparse, _removed, True),
        ]),
        _both("images/s while training", (dense, sparse), lambda e: e.images_per_s),
    ]  # fmt: skip
    panels = [panel for panel in panels if any(_drawn(line) for line in panel.lines)]
    alt = f"Over the epochs of training: {', '.join(panel.axis for panel in panels)}."
    return course("What drove the deaths", panels, alt) if sparse and panels else None


def layers_picture(sparse: Sequence[Epoch]) -> Picture | None:
    """Dead and removed channels of each layer; None where no census counted them."""
    counted = [epoch for epoch in sparse if epoch.dead_by_layer and epoch.channels_by_layer]
    if not counted:
        return None
    widths = counted[-1].channels_by_layer
    layers = [
        Deaths(
            layer,
            [epoch.dead_by_layer.get(layer, 0) / width for epoch in counted],
            [epoch.removed_by_layer.get(layer, 0) / width for epoch in counted],
        )
        for layer, width in widths.items()
    ]
    return deaths("Deaths layer by layer", _numbers(counted), layers)


def moments(sparse: Sequence[Epoch]) -> list[Epoch]:
    """A few epochs in equal distances up to the last, of those with a census."""
    counted = [epoch for epoch in sparse if epoch.dead_by_layer and epoch.channels_by_layer]
    count = min(MOMENTS, len(counted))
    return [counted[math.ceil((k + 1) * len(counted) / count) - 1] for k in range(count)]


def layer_rows(sparse: Sequence[Epoch]) -> list[list[str]]:
    """The plot of the layers as figures: name, channels, `25 (16)` dead and of these removed at each of `moments`."""
    at = moments(sparse)
    return [
        [layer, str(width)]
        + [f"{epoch.dead_by_layer.get(layer, 0)} ({epoch.removed_by_layer.get(layer, 0)})" for epoch in at]
        for layer, width in (at[-1].channels_by_layer.items() if at else ())
    ]


def deaths(title: str, epochs: Sequence[int], layers: Sequence[Deaths]) -> Picture:
    """A row per layer, full height for all of its channels: pale what is dead, full colour what is removed."""
    many = len(layers) > MANY_LAYERS

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        for row, layer in enumerate(layers):
            ground = row + 0.42
            axes.axhline(ground, color=COLOURS["line"], linewidth=0.6)
            for share, alpha in ((layer.dead, 0.4), (layer.removed, 1.0)):
                at = steps(share)
                tops = [ground - 0.84 * share[i] for i in at]
                area = [epochs[i] for i in at]
                axes.fill_between(area, ground, tops, color=COLOURS["dead"], alpha=alpha, linewidth=0, step="post")
        rows(axes, [short(layer.layer) for layer in layers])
        if many:
            axes.tick_params(axis="y", labelsize=6.5)
        axes.set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1))
        axes.grid(axis="y", visible=False)
        epoch_axis(axes)

    key = (("is-dying", "dead, still there"), ("is-dead", "removed"))
    alt = "Dead and removed channels of each layer over the epochs of training."
    return picture(title, draw, height_in=0.6 + (0.16 if many else 0.28) * len(layers), alt=alt, key=key)


def steps(values: Sequence[float]) -> list[int]:
    """Indices where a value differs from the one before, the first and the last: all that a step needs."""
    inner = [i for i in range(1, len(values) - 1) if values[i] != values[i - 1]]
    return sorted({0, *inner, len(values) - 1})


def _both(
    axis: str,
    both: tuple[Sequence[Epoch], Sequence[Epoch]],
    figure: Callable[[Epoch], float | None],
    log: bool = False,
) -> Panel:
    lines = [
        _line(name, colour, e, figure)
        for name, colour, e in zip(("dense", "sparse"), ("dense", "compact"), both, strict=True)
    ]
    return Panel(axis, [line for line in lines if _drawn(line)], log)


def _line(
    label: str, colour: str, epochs: Sequence[Epoch], figure: Callable[[Epoch], float | None], dashed: bool = False
) -> Line:
    """None as NaN, which is not drawn."""
    values = [figure(epoch) for epoch in epochs]
    return Line(
        label, colour, _numbers(epochs), [math.nan if value is None else float(value) for value in values], dashed
    )


def _drawn(line: Line) -> bool:
    return any(math.isfinite(value) for value in line.values)


def _floor(curves: Sequence[Line]) -> float | None:
    """A little under the lowest value after a quarter of the epochs, so that the first climb does not flatten the
    rest."""
    later = [value for line in curves for value in line.values[len(line.values) // 4 :] if math.isfinite(value)]
    return max(0.0, min(later) - 0.2 * (max(later) - min(later))) if later and max(later) > min(later) else None


def _numbers(epochs: Sequence[Epoch]) -> list[int]:
    return [epoch.epoch for epoch in epochs]


def _peak(epochs: Sequence[Epoch], figure: Callable[[Epoch], float | None]) -> float:
    return max((value for epoch in epochs if (value := figure(epoch)) is not None), default=0.0)


def _share_of(whole: float, figure: Callable[[Epoch], float | None]) -> Callable[[Epoch], float | None]:
    """In percent of `whole`."""
    return lambda epoch: None if not whole or (value := figure(epoch)) is None else 100 * value / whole


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _dead(epoch: Epoch) -> float | None:
    return None if epoch.dead is None or not epoch.channels else 100 * epoch.dead / epoch.channels


def _removed(epoch: Epoch) -> float | None:
    if not epoch.removed_by_layer or not epoch.channels:
        return None
    return 100 * sum(epoch.removed_by_layer.values()) / epoch.channels
