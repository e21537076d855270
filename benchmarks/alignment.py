"""Alignment of channel counts: what each multiple costs, and whether `auto` finds the best one.

    python -m benchmarks.alignment --out benchmarks/results/alignment.cpu.json

For each network and pattern of deaths `auto` chooses as in surgery; then what every multiple leaves, and the dense
network, are timed anew in one paired comparison, with sessions of their own. Cases that the file has already are not
measured again. Exit 1 where `auto` is more than 3 % slower than the best, or slower than dense.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.deaths import SIDE, Point, deeper, fill, half, images, ragged, sessions_of, with_deaths
from pipeline.surgery.align import DENSE, Timing, align_by_timing
from pipeline.surgery.analysis import Analysis
from pipeline.surgery.certificate import channel_counts
from pipeline.surgery.rebuild import rebuild
from pipeline.surgery.select import choose
from pipeline.surgery.trace import trace
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS
from runtime.latency import compare
from runtime.macs import macs

FIXED = (1, 8, 16, 32)
PATTERNS = {"half of each layer": half, "10 to 90 % with depth": deeper, "20 to 80 % at random": ragged}
ALLOWED = 1.03  # of the best
BATCH = 8


def cases() -> list[Point]:
    models = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2")
    return [{"model": model, "deaths": pattern} for model in models for pattern in PATTERNS]


def measured(case: Point, threads: int, rounds: int, time_limit_s: float) -> list[Point]:
    """One point for each of the fixed multiples, `auto` and dense. p50 is the median over rounds of new sessions."""
    network = with_deaths(case["model"], PATTERNS[case["deaths"]])
    analysis = Analysis(trace(network, (torch.zeros(1, 3, SIDE, SIDE),))).run()
    timing = Timing(batch=BATCH, threads=threads, device="cpu", time_limit_s=time_limit_s)
    auto, choice, cut = align_by_timing(analysis, images(BATCH), timing)
    cuts = {str(size): choose(analysis, size) for size in FIXED} | {"auto": (choice, cut)}
    names = [*cuts, "dense"]
    models = [*(rebuild(analysis, c) for _, c in cuts.values()), network]
    taken = timed(models, threads, rounds, time_limit_s)
    points: list[Point] = []
    for i, name in enumerate(names):
        kept = choose(analysis, DENSE)[0] if name == "dense" else cuts[name][0]
        channels = channel_counts(analysis, kept)["after"]
        points.append({
            "align": name, "channels": channels, "macs": macs(models[i], (3, SIDE, SIDE)),
            "batch": BATCH, "p50_ms": float(np.median(taken[:, i])), "p50_ms_low": float(taken[:, i].min()),
            "p50_ms_high": float(taken[:, i].max()), "rounds": len(taken),
        })  # fmt: skip
    best = min(p["p50_ms"] for p in points if p["align"] not in ("auto", "dense"))
    mine = points[names.index("auto")]
    mine["chosen"] = "dense" if auto.size == DENSE else str(auto.size)
    mine["over_best"], mine["over_dense"] = mine["p50_ms"] / best, mine["p50_ms"] / points[-1]["p50_ms"]
    return points


def timed(models: Sequence[torch.nn.Module], threads: int, rounds: int, time_limit_s: float) -> np.ndarray:
    """p50 in ms, (rounds, models); sessions are opened anew for each round."""
    feed, taken = images(BATCH).numpy(), []
    for seed in range(rounds):
        with tempfile.TemporaryDirectory() as folder, sessions_of(models, Path(folder), threads) as sessions:
            feeds = [{session.inputs[0].name: feed} for session in sessions]
            seen = compare(sessions, feeds, min_blocks=10, time_limit_s=time_limit_s, seed=seed)
        taken.append([row.p50_ms for row in seen.models])
    return np.array(taken)


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results file; added to where it exists")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--time-limit-s", type=float, default=10.0, help="of one comparison")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="no new case after so many seconds (exit 3)"
    )
    given = parser.parse_args(arguments)
    command = f"python -m benchmarks.alignment --out benchmarks/results/{given.out.name}"
    torch.set_num_threads(given.threads)

    def measure(case: Point) -> list[Point]:
        return measured(case, given.threads, given.rounds, given.time_limit_s)

    if not fill(given.out, command, cases(), measure, given.limit_s):
        return EXIT_INCONCLUSIVE
    broken = missed(json.loads(given.out.read_text("utf-8"))["points"])
    for text in broken:
        print(f"missed: {text}", file=sys.stderr)
    return EXIT_GATE_FAILED if broken else EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
