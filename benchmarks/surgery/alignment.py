"""Alignment of channel counts: what each multiple costs, and whether `auto` finds the best one.

    python -m benchmarks.surgery.alignment --out benchmarks/results/alignment.cpu.json
    python -m benchmarks.surgery.alignment --out benchmarks/results/alignment_openvino.cpu.json --backend openvino

For each network and pattern of deaths `auto` chooses as in surgery; then what every multiple leaves, and the dense
network, are timed anew, in turn and over many openings (`runtime.measure`). Multiples that leave the same network
are one figure, for what differs between two timings of one network is noise. `over_best` is `auto` over each fixed
multiple, the highest of the paired ratios. Cases that the file has already are not measured again. Exit 1 where `auto`
is more than 3 % slower than the best, or slower than dense.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.results import Point
from benchmarks.surgery.deaths import (
    BACKENDS,
    SIDE,
    compared,
    deeper,
    exported,
    filled,
    half,
    images,
    ragged,
    with_deaths,
)
from pipeline.surgery.align import DENSE, NAMES, PER_LAYER, Timing, align_by_timing, distinct
from pipeline.surgery.cut.kernels import onnxruntime_multiples
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import trace
from runtime.errors import EXIT_INCONCLUSIVE
from runtime.macs import macs
from runtime.measure.latency import Comparison

FIXED = (1, 8, 16, 32)
PATTERNS = {"half of each layer": half, "10 to 90 % with depth": deeper, "20 to 80 % at random": ragged}
ALLOWED = 1.03  # of the best
BATCH = 8


def cases() -> list[Point]:
    models = ("resnet18", "mobilenet_v2", "resnet50", "vgg16_bn")
    return [{"model": model, "deaths": pattern} for model in models for pattern in PATTERNS]


def measured(case: Point, threads: int, time_limit_s: float) -> list[Point]:
    """One point for each of the fixed multiples, `auto` and dense."""
    network = with_deaths(case["model"], PATTERNS[case["deaths"]])
    analysis = analyse(trace(network, (torch.zeros(1, 3, SIDE, SIDE),)))
    backend = case.get("backend", BACKENDS[0])
    timing = Timing(BATCH, threads, "cpu", backend, time_limit_s=min(60.0, time_limit_s))
    auto, _, _ = align_by_timing(analysis, images(BATCH), timing)
    own = onnxruntime_multiples(analysis) if auto.size == PER_LAYER else None
    different = distinct(analysis, {*FIXED, auto.size} - {DENSE, PER_LAYER}, own)
    different.sort(key=lambda candidate: auto.size not in candidate.sizes)
    models = [rebuild(analysis, candidate.cut) for candidate in different]
    with tempfile.TemporaryDirectory() as folder:
        seen = compared(exported(models, Path(folder)), BATCH, threads, time_limit_s, backend)
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
        "chosen": NAMES.get(auto.size, str(auto.size)),
        "over_best": max(over[str(size)] for size in FIXED), "over_dense": over["dense"],
    }  # fmt: skip
    return points


def ratio_to_auto(seen: Comparison, place: int) -> tuple[float, float, float]:
    """The time of `auto`, which is the first, over that of the network at `place`, and its 95 % interval."""
    if place == 0:
        return 1.0, 1.0, 1.0
    speedup = seen.speedups[place - 1]
    return speedup.ratio, *speedup.ci95


def missed(points: Sequence[Point]) -> list[str]:
    """Where `auto` broke its promise."""
    failures = []
    for p in points:
        if p["align"] == "auto" and (p["over_best"] > ALLOWED or p["over_dense"] > 1):
            failures.append(
                f"{p['model']}, {p['deaths']}: {p['over_best']:.3f} of the best, {p['over_dense']:.3f} of dense"
            )
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    out = filled("surgery.alignment", __doc__, arguments, 60.0, cases(), measured, BACKENDS)
    if out is None:
        return EXIT_INCONCLUSIVE
    return results.judge(missed(results.points_in(out)))


if __name__ == "__main__":
    sys.exit(main())
