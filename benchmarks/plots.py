"""Plots of results for the README, each an SVG beside the results file it is drawn from.

    python -m benchmarks.plots

The SVG's title holds the hash of the results; a test fails where that is not the file's.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.tables import RESULTS
from runtime.errors import EXIT_PASS
from runtime.files import replacing

Point = dict[str, Any]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "demport", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dedad3", "axes.axisbelow": True,
}  # fmt: skip
LOOKS = {
    "dense": ("#1d1c1a", "*"), "narrow": ("#7d7870", "s"), "demp plain": ("#7ab8b2", "v"),
    "demp macs": ("#7ab8b2", "^"), "steered plain": ("#0b6b63", "v"), "steered macs": ("#0b6b63", "^"),
    "steered latency": ("#0b6b63", "o"), "steered macs aligned": ("#0b6b63", "P"),
    "slimming": ("#b8500f", "X"), "group norm": ("#b8500f", "D"),
}  # fmt: skip


def methods(figure: Figure, points: Sequence[Point]) -> None:
    """Accuracy over MACs, and over speed: the mean over seeds, with the range."""
    left, right = figure.subplots(1, 2, sharey=True)
    runs: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        runs.setdefault((point["method"], point["amount"]), []).append(point)
    for (method, _), mine in sorted(runs.items(), key=lambda pair: list(LOOKS).index(pair[0][0])):
        colour, marker = LOOKS[method]
        for axes, key in ((left, "macs_pct"), (right, "speedup")):
            x, y = ([p[k] for p in mine] for k in (key, "accuracy_pct"))
            at, high = sum(x) / len(x), sum(y) / len(y)
            axes.plot([at, at], [min(y), max(y)], color=colour, linewidth=1)
            axes.plot([at], [high], color=colour, marker=marker, markersize=6, linestyle="none", label=method)
    left.set_xlabel("MACs, % of dense")
    left.set_ylabel("test accuracy, %")
    right.set_xlabel("speedup over dense, batch 32")
    names: dict[str, Any] = {}
    for handle, label in zip(*right.get_legend_handles_labels(), strict=True):
        names.setdefault(label, handle)
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)


KINDS = {"dense": ("#1d1c1a", "s"), "channels": ("#0b6b63", "^"), "weights": ("#b8500f", "o"), "mlp": ("#7d7870", "x")}
"""Colour and marker of what `benchmarks/methods/every_method.py` calls a kind."""


APART = 1.5
"""Points of accuracy between two names."""


def every(figure: Figure, points: Sequence[Point]) -> None:
    """Accuracy over MACs, latency and size: a mark for each method and amount, and names on the frontier alone, which
    no other run is better than in both."""
    runs: dict[tuple[str, str], list[Point]] = {}
    for point in (p for p in points if "refused" not in p):
        runs.setdefault((point["method"], point["asked"]), []).append(point)
    parts = (("macs_pct", "MACs, % of dense"), ("openvino_batch_32_p50_ms", "latency of 32 images, OpenVINO, ms"),
             ("smallest_kib", "smallest ONNX file, KiB"))  # fmt: skip
    for axes, (key, label) in zip(figure.subplots(1, 3, sharey=True), parts, strict=True):
        marks = [
            (sum(p[key] for p in mine) / len(mine), sum(p["accuracy_pct"] for p in mine) / len(mine), mine[0])
            for mine in runs.values()
            if key in mine[0] and (key == "smallest_kib" or mine[0]["kind"] != "mlp")
        ]
        for kind, (colour, marker) in KINDS.items():
            mine_at = [(x, y) for x, y, run in marks if run["kind"] == kind]
            axes.scatter(*zip(*mine_at, strict=True) if mine_at else ([], []), s=16, color=colour, marker=marker,
                         label=kind, alpha=0.7, linewidths=0.8)  # fmt: skip
        best = frontier(marks)
        axes.plot([x for x, _, _ in best], [y for _, y, _ in best], color="#b5afa6", linewidth=1, zorder=0)
        named = -math.inf
        for x, y, run in best:
            if y - named < APART:
                continue
            named = y
            text = f"{run['method']} {run['asked'].partition(' of')[0]}".strip()
            axes.annotate(text, (x, y), (-4, 5), textcoords="offset points", fontsize=6.5, ha="right")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def frontier(marks: Sequence[tuple[float, float, Point]]) -> list[tuple[float, float, Point]]:
    """Those (cost, accuracy, run) that no other beats in both, by cost."""
    best: list[tuple[float, float, Point]] = []
    for mark in sorted(marks, key=lambda mark: (mark[0], -mark[1])):
        if not best or mark[1] > best[-1][1]:
            best.append(mark)
    return best


def training(figure: Figure, points: Sequence[Point]) -> None:
    """Images a second over the epochs of both trainings."""
    axes: Axes = figure.subplots()
    for point in (p for p in points if p["measured"] == "removals"):
        epochs, speed = ([row[key] for row in point["curve"]] for key in ("epoch", "images_per_s"))
        axes.plot(epochs, speed, color=LOOKS["dense" if point["training"] == "dense" else "steered macs"][0],
                  label=f"{point['training']}, {point['time_s']:.0f} s in all")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("images/s while training")
    axes.legend(frameon=False)


DRAWN: dict[str, tuple[Callable[[Figure, Sequence[Point]], None], tuple[float, float]]] = {
    "methods.cpu": (methods, (8.0, 4.2)),
    "methods_fashion.cpu": (methods, (8.0, 4.2)),
    "methods_every.cpu": (every, (12.0, 5.0)),
    "training.cpu": (training, (6.0, 3.0)),
}


def title(path: Path) -> str:
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def draw(path: Path) -> Path:
    """The SVG of a results file."""
    function, size = DRAWN[path.stem]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        function(figure, json.loads(path.read_text("utf-8"))["points"])
        picture = path.with_suffix(".svg")
        with replacing(picture) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None, "Title": title(path)})
    return picture


def main() -> int:
    for name in DRAWN:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            draw(path)
    return EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
