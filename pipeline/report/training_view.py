"""What history.jsonl tells of a training: its epochs, and which of their figures become which plot and table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.files import read_bounded

from . import numbers, training_plots
from .plots import Picture, Role
from .reading import damaged
from .training_plots import Curve, Deaths, Line, Panel

MOMENTS = 5  # columns of the table of layers
HISTORY_BYTES = 256 << 20
"""A line tells three figures of each layer: 10,000 epochs of 200 layers fit."""


@dataclass(frozen=True)
class Epoch:
    """A line of history.jsonl; what a training without DemP does not have is None. `penalty` is lambda."""

    epoch: int
    loss: float | None
    accuracy: float | None
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


@dataclass(frozen=True)
class LayerRow:
    """Dead and removed of a layer's channels at a few epochs, as text."""

    layer: str
    channels: int
    moments: Sequence[str]


def read_history(folder: Path) -> list[Epoch]:
    """The epochs of a training; [] where it did not run. Raises UserError where the file is damaged."""
    path = folder / "history.jsonl"
    if not path.exists():
        return []
    try:
        lines = read_bounded(path, HISTORY_BYTES).decode().splitlines()
        return [_epoch(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        damaged(path, f"{type(error).__name__}: {error}")


def _epoch(row: Mapping[str, Any]) -> Epoch:
    plain = ("loss", "accuracy", "lr", "seconds", "images_per_s", "macs", "sigma", "dead", "channels")
    tables = ("dead_by_layer", "removed_by_layer", "channels_by_layer")
    figures: dict[str, Any] = {name: row.get(name) for name in plain}
    figures |= {name: dict(row.get(name) or {}) for name in tables}
    removed = sum(removal["channels"] for removal in row.get("removals") or ())
    return Epoch(epoch=row["epoch"], penalty=row.get("lambda"), removed=removed, **figures)


def accuracy_picture(dense: Sequence[Epoch], demp: Sequence[Epoch]) -> Picture | None:
    """Test accuracy of both, and the share of dead channels."""
    both: tuple[tuple[str, Role, Sequence[Epoch]], ...] = (("dense", "dense", dense), ("DemP", "compact", demp))
    curves = [
        Curve(
            label,
            role,
            _numbers(epochs),
            _values(epochs, lambda e: _times(100, e.accuracy)),
            [_dead(e) for e in epochs],
        )
        for label, role, epochs in both
        if any(epoch.accuracy is not None for epoch in epochs)
    ]
    return training_plots.training(curves) if curves else None


def course_picture(dense: Sequence[Epoch], demp: Sequence[Epoch]) -> Picture | None:
    """Loss, lambda and sigma, MACs, dead and removed channels, and speed; None where no DemP training tells them."""
    if not any(epoch.penalty is not None for epoch in demp):
        return None
    penalty, sigma = (_peak(demp, get) for get in (lambda e: e.penalty, lambda e: e.sigma))
    whole = next((e.macs for e in dense if e.macs), None) or max((e.macs or 0 for e in demp), default=0)
    panels = [
        _panel("loss", (dense, demp), lambda e: e.loss, log=True),
        Panel("lambda and sigma, % of their peaks", [
            _line(f"lambda, peak {numbers.small(penalty)}", "compact", demp, _share_of(penalty, lambda e: e.penalty)),
            _line(f"sigma, peak {numbers.small(sigma)}", "dead", demp, _share_of(sigma, lambda e: e.sigma), True),
        ]),
        Panel("MACs an image, % of dense", [_line("DemP", "compact", demp, _share_of(whole, lambda e: e.macs))]),
        Panel("channels, %", [
            _line("dead", "dead", demp, _dead),
            _line("removed", "compact", demp, _removed, True),
        ]),
        _panel("images/s while training", (dense, demp), lambda e: e.images_per_s),
    ]  # fmt: skip
    return training_plots.course([panel for panel in panels if any(_known(line) for line in panel.lines)])


def layers_picture(demp: Sequence[Epoch]) -> Picture | None:
    """Dead and removed channels of each layer; None where no census told them."""
    told = [epoch for epoch in demp if epoch.dead_by_layer and epoch.channels_by_layer]
    if not told:
        return None
    widths = told[-1].channels_by_layer
    layers = [
        Deaths(
            layer,
            [epoch.dead_by_layer.get(layer, 0) / width for epoch in told],
            [epoch.removed_by_layer.get(layer, 0) / width for epoch in told],
        )
        for layer, width in widths.items()
    ]
    return training_plots.deaths(_numbers(told), layers)


def moments(demp: Sequence[Epoch]) -> list[Epoch]:
    """A few epochs in equal distances up to the last, of those with a census."""
    told = [epoch for epoch in demp if epoch.dead_by_layer and epoch.channels_by_layer]
    count = min(MOMENTS, len(told))
    return [told[math.ceil((k + 1) * len(told) / count) - 1] for k in range(count)]


def layer_rows(demp: Sequence[Epoch]) -> list[LayerRow]:
    """The plot of the layers as figures: `25 dead, 16 removed` at each of `moments`."""
    at = moments(demp)
    if not at:
        return []
    return [
        LayerRow(
            layer,
            width,
            [f"{epoch.dead_by_layer.get(layer, 0)} ({epoch.removed_by_layer.get(layer, 0)})" for epoch in at],
        )
        for layer, width in at[-1].channels_by_layer.items()
    ]


def _panel(
    axis: str,
    both: tuple[Sequence[Epoch], Sequence[Epoch]],
    figure: Callable[[Epoch], float | None],
    log: bool = False,
) -> Panel:
    dense, demp = both
    lines = [_line("dense", "dense", dense, figure), _line("DemP", "compact", demp, figure)]
    return Panel(axis, [line for line in lines if _known(line)], log)


def _line(
    label: str, colour: str, epochs: Sequence[Epoch], figure: Callable[[Epoch], float | None], dashed: bool = False
) -> Line:
    return Line(label, colour, _numbers(epochs), _values(epochs, figure), dashed)


def _known(line: Line) -> bool:
    return any(math.isfinite(value) for value in line.values)


def _numbers(epochs: Sequence[Epoch]) -> list[int]:
    return [epoch.epoch for epoch in epochs]


def _values(epochs: Sequence[Epoch], figure: Callable[[Epoch], float | None]) -> list[float]:
    """None as NaN, which is not drawn."""
    found = [figure(epoch) for epoch in epochs]
    return [math.nan if value is None else float(value) for value in found]


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
