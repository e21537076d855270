"""What a method adds to the report: the figures of its history, and what its masks are worth in a server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.page import Block, Picture, Section, Table, Text, numbers
from pipeline.report.page.plots import Line, Panel, course
from runtime.measure.latency import Speedup

USUAL = frozenset({
    "epoch", "loss", "accuracy", "lr", "seconds", "images_per_s", "macs", "params", "lambda", "sigma", "dead",
    "channels",
})  # fmt: skip
"""Columns that every training or DemP has, which have plots and tables of their own."""
MOST_PANELS = 6
WEIGHTS = ("count", "living", "bytes", "sparse_bytes", "two_of_four", "groups", "groups_that_fit")
Counts = tuple[int | None, int | None, int | None]
Figures = Sequence[tuple[int, Mapping[str, float]]]
"""(epoch, figures of the method) of each row of the history."""


@dataclass(frozen=True)
class Masked:
    """Of a training with masks: the weights that live after it, and what that comes to in compact's ONNX file.
    `sparse_bytes`: of the file with sparse initialisers; null beside its reason."""

    living_trained: int
    density: float
    count: int
    living: int
    bytes: int
    sparse_bytes: int | None
    two_of_four: tuple[str, ...]
    groups: int
    groups_that_fit: int
    reasons: dict[str, str]


def masked_of(figures: Mapping[str, float], weights: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """From the last row of the history and what stage 50 says of the weights; None without masks, or without it."""
    if "living_weights" not in figures or weights is None:
        return None
    reasons = {} if weights["reason"] is None else {"sparse_bytes": weights["reason"]}
    trained = {"living_trained": int(figures["living_weights"]), "density": figures["density"]}
    return {**trained, **{name: weights[name] for name in WEIGHTS}, "reasons": reasons}


def worth(masked: Masked, channels: Counts, macs: tuple[int | None, int | None], latency: str) -> Section:
    """`channels` before, dead and after, `macs` of dense and compact; `latency`: of compact against dense in words, ""
    where it was not measured."""
    living = masked.living / max(1, masked.count)
    sparse = numbers.binary(masked.sparse_bytes)
    facts = [
        ("Weights that live after training", f"{masked.living_trained:,} ({numbers.percent(masked.density)})"),
        ("Of compact's weights in the ONNX file", f"{masked.living:,} of {masked.count:,} ({numbers.percent(living)})"),
        ("Channels", _fall((channels[0], channels[2]))),
        ("MACs an image, dense arithmetic", _fall(macs)),
        ("ONNX file", numbers.binary(masked.bytes)),
        ("With sparse initialisers", sparse if masked.sparse_bytes else f"none: {masked.reasons['sparse_bytes']}"),
        ("Latency against dense", latency or "not measured"),
    ]
    if masked.groups:
        whole = ", ".join(masked.two_of_four) or "no layer"
        fit = f"{masked.groups_that_fit:,} of {masked.groups:,} groups fit; in all of them: {whole}"
        facts.append(("2 of 4 along the inputs", fit))
    blocks: list[Block] = [
        Text("50-simplify/stage.json, 20-sparse/history.jsonl", "source"),
        Text(sentence(masked, channels, latency)),
        Table((), facts),
    ]
    return Section("What the masks are worth", blocks, brief=True)


def sentence(masked: Masked, channels: Counts, latency: str) -> str:
    """`98 % of the weights are zero and the network is not faster: 14 % of the channels could go.`"""
    zeros = f"{numbers.percent(1 - masked.density, 1)} of the weights are zero"
    before, dead, after = channels
    if before is None or dead is None or after is None:
        return f"{zeros}."
    held = after - (before - dead)
    stay = f", of which {held:,} of {dead:,} stay for alignment" if held > 0 else ""
    speed = f"compared with dense the network is {latency}" if latency else "its latency was not measured"
    return f"{zeros} and {speed}: {numbers.percent(dead / max(1, before), 1)} of the channels could go{stay}."


def latency_in_words(name: str, speedup: Speedup | None) -> str:
    """Of the comparison `name`: `faster (1.6x (1.5 to 1.7), onnxruntime fp32, batch 32)`; "" where it was not made."""
    if speedup is None:
        return ""
    words = {"no difference found": "not distinguishable in speed", "not measured long enough": "not timed long enough"}
    word = numbers.wording(speedup)
    return f"{words.get(word, word)} ({numbers.with_interval(speedup)}, {name})"


def _fall(pair: tuple[int | None, int | None]) -> str:
    before, after = pair
    if before is None or after is None:
        return "not known: the check was not run"
    return f"{before:,} to {after:,} ({numbers.percent(after / max(1, before))})"


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of the history that are the method's own."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in USUAL and isinstance(value, int | float) and not isinstance(value, bool)
    }


def figures_table(rows: Figures) -> Table | None:
    """The method's own figures; None where it has none."""
    names = _names(rows)
    if not names:
        return None
    cells = [
        [str(epoch), *(numbers.plain(figures[name]) if name in figures else "" for name in names)]
        for epoch, figures in rows
    ]
    heads = ["Epoch", *(name.replace("_", " ").capitalize() for name in names)]
    return Table(heads, cells, range(1, len(heads)), "Figures of the method, epoch by epoch")


def figures_picture(rows: Figures) -> Picture | None:
    """The first of the method's figures that change, each on an axis of its own."""
    values = {name: [figures.get(name, math.nan) for _, figures in rows] for name in _names(rows)}
    moving = {name: line for name, line in values.items() if len({v for v in line if math.isfinite(v)}) > 1}
    epochs = [epoch for epoch, _ in rows]
    panels = [
        Panel(name.replace("_", " "), [Line(name, "compact", epochs, line)])
        for name, line in list(moving.items())[:MOST_PANELS]
    ]
    alt = f"Over the epochs of training: {', '.join(panel.axis for panel in panels)}."
    return course("Figures of the method", panels, alt) if panels else None


def _names(rows: Figures) -> list[str]:
    return list(dict.fromkeys(name for _, figures in rows for name in figures))
