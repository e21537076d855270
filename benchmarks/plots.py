"""Plots of results for the README, each an SVG beside the results file it is drawn from.

    python -m benchmarks.plots

The SVG's title holds the hash of the results; a test fails where that is not the file's.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.tables import RESULTS
from export.files import replacing
from runtime.errors import EXIT_PASS

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
        made = path.with_suffix(".svg")
        with replacing(made) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None, "Title": title(path)})
    return made


def main() -> int:
    for name in DRAWN:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            draw(path)
    return EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
