"""The mean over the seeds of a benchmark's runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Point = dict[str, Any]
AVERAGED = ("accuracy_pct", "macs_pct", "params", "batch_32_p50_ms", "speedup")


def mean_over_seeds(points: Sequence[Point]) -> list[Point]:
    """One point for each method and amount, the smaller amounts first and by accuracy within: `seeds` of them, the
    means of AVERAGED over the seeds that have the figure, and the lowest and highest accuracy."""
    runs: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        runs.setdefault((point["method"], point["amount"]), []).append(point)
    means = []
    for (method, amount), mine in runs.items():
        mean: Point = {"method": method, "amount": amount, "asked": mine[0]["asked"], "seeds": len(mine)}
        for key in AVERAGED:
            known = [p[key] for p in mine if p.get(key) is not None]
            mean[key] = statistics.fmean(known) if known else None
        accuracies = [p["accuracy_pct"] for p in mine]
        means.append(mean | {"accuracy_low_pct": min(accuracies), "accuracy_high_pct": max(accuracies)})
    return sorted(means, key=lambda p: (p["asked"].startswith("lambda"), p["amount"], -p["accuracy_pct"]))
