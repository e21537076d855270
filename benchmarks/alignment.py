"""Alignment of channel counts: what each multiple costs, and whether `auto` finds the best one.

    python -m benchmarks.alignment --out benchmarks/results/alignment.cpu.json

For each network and pattern of deaths `auto` chooses as in surgery; then what every multiple leaves, and the dense
network, are timed anew, in turn and over many openings (runtime/openings.py). Multiples that leave the same network
are one figure, for what differs between two timings of one network is noise. `over_best` is `auto` over each fixed
multiple, the highest of the paired ratios. Cases that the file has already are not measured again. Exit 1 where `auto`
is more than 3 % slower than the best, or slower than dense.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.deaths import SIDE, Point, compared, deeper, exported, filled, half, images, ragged, with_deaths
from pipeline.surgery.align import DENSE, Timing, align_by_timing, distinct
from pipeline.surgery.analysis import Analysis
from pipeline.surgery.rebuild import rebuild
from pipeline.surgery.trace import trace
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS
from runtime.latency import Comparison
from runtime.macs import macs

FIXED = (1, 8, 16, 32)
PATTERNS = {"half of each layer": half, "10 to 90 % with depth": deeper, "20 to 80 % at random": ragged}
ALLOWED = 1.03  # of the best
BATCH = 8


def cases() -> list[Point]:
    models = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2")
    return [{"model": model, "deaths": pattern} for model in models for pattern in PATTERNS]


def measured(case: Point, threads: int, time_limit_s: float) -> list[Point]:
    """One point for each of the fixed multiples, `auto` and dense."""
    network = with_deaths(case["model"], PATTERNS[case["deaths"]])
    analysis = Analysis(trace(network, (torch.zeros(1, 3, SIDE, SIDE),))).run()
    timing = Timing(batch=BATCH, threads=threads, device="cpu")
    auto, _, _ = align_by_timing(analysis, images(BATCH), timing)
    different = distinct(analysis, {*FIXED, auto.size} - {DENSE})
    different.sort(key=lambda candidate: auto.size not in candidate.sizes)
    models = [rebuild(analysis, candidate.cut) for candidate in different]
    with tempfile.TemporaryDirectory() as folder:
        seen = compared(exported(models, Path(folder)), BATCH, threads, time_limit_s)
    over: dict[str, float] = {}
    points: list[Point] = []
    for name, size in [*((str(size), size) for size in FIXED), ("auto", auto.size), ("dense", DENSE)]:
        place = next(i for i, candidate in enumerate(different) if size in candidate.sizes)
        over[name], low, high = ratio_to_auto(seen, place)
        points.append({
            "align": name, "channels": different[place].channels, "macs": macs(models[place], (3, SIDE, SIDE)),
            "batch": BATCH, "p50_ms": seen.models[place].p50_ms, "auto_over": over[name],
            "auto_over_low": low, "auto_over_high": high, "openings": seen.protocol["openings"],
        })  # fmt: skip
    points[-2] |= {
        "chosen": "dense" if auto.size == DENSE else str(auto.size),
        "over_best": max(over[str(size)] for size in FIXED), "over_dense": over["dense"],
    }  # fmt: skip
    return points


def ratio_to_auto(seen: Comparison, place: int) -> tuple[float, float, float]:
    """The time of `auto`, which is the first, over that of the network at `place`, and its 95 % interval."""
    if place == 0:
        return 1.0, 1.0, 1.0
    told = seen.speedups[place - 1]
    return told.ratio, *told.ci95


def missed(points: Sequence[Point]) -> list[str]:
    """Where `auto` broke its promise."""
    found = []
    for p in points:
        if p["align"] == "auto" and (p["over_best"] > ALLOWED or p["over_dense"] > 1):
            found.append(
                f"{p['model']}, {p['deaths']}: {p['over_best']:.3f} of the best, {p['over_dense']:.3f} of dense"
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    out = filled("alignment", __doc__, arguments, 60.0, cases(), measured)
    if out is None:
        return EXIT_INCONCLUSIVE
    broken = missed(json.loads(out.read_text("utf-8"))["points"])
    for text in broken:
        print(f"missed: {text}", file=sys.stderr)
    return EXIT_GATE_FAILED if broken else EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
