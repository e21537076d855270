"""How often the latency comparison is right where the truth is known: a network against itself and slowed copies.

    python -m benchmarks.gate_power --comparisons 200 --out benchmarks/results/gate_power.cpu.json

A slowed copy works on after each launch for 5 or 10 % of the time that launch took (and the few microseconds of doing
so, which for a network of 50 us are some percent more). Each comparison opens its own two sessions. With c comparisons,
c are made without slowing and c / 2 for each slowing, at every batch size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.files import write_json
from export.onnx_from_torch import onnx_from_torch
from pipeline import config
from pipeline.models import build
from runtime.backend import Session, open_session
from runtime.device import environment
from runtime.feeds import random_feeds
from runtime.latency import Comparison, compare

SLOWED_PCT = (0, 5, 10)


class Slowed:
    """A session that keeps a core busy after each launch for a share of the time the launch took."""

    def __init__(self, session: Session, share: float) -> None:
        self._session, self._share = session, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def launch(self) -> None:
        start = time.perf_counter_ns()
        self._session.launch()
        self._session.wait()
        end = time.perf_counter_ns()
        until = end + (end - start) * self._share
        while time.perf_counter_ns() < until:
            pass


def comparison(path: Path, batch: int, slowed_pct: int, options: argparse.Namespace) -> Comparison:
    """One comparison of a fresh pair of sessions."""
    first, other = (open_session(path, device="cpu", threads=options.threads) for _ in range(2))
    second: Any = Slowed(other, slowed_pct / 100) if slowed_pct else other
    try:
        feeds = [random_feeds(first, batch)] * 2
        return compare([first, second], feeds, time_limit_s=options.time_limit_s, precision=options.precision)
    finally:
        first.close()
        other.close()


def point(path: Path, batch: int, slowed_pct: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: the verdicts, and how far the ratio lies from the truth."""
    count = options.comparisons if slowed_pct == 0 else max(1, options.comparisons // 2)
    started = time.perf_counter()
    told = []
    for number in range(count):
        told.append(comparison(path, batch, slowed_pct, options))
        print(f"batch {batch}, slowed by {slowed_pct} %: {number + 1} of {count}", file=sys.stderr)
    speedups = [result.speedups[0] for result in told]
    verdicts = [speedup.verdict for speedup in speedups]
    ratios = [speedup.ratio for speedup in speedups]
    return {
        "batch": batch,
        "slowed_pct": slowed_pct,
        "comparisons": count,
        **{
            verdict.replace(" ", "_"): verdicts.count(verdict)
            for verdict in ("faster", "not distinguishable", "slower")
        },
        "lowest_ratio": min(ratios),
        "median_ratio": statistics.median(ratios),
        "highest_ratio": max(ratios),
        "intervals_with_1_pct": 100 * statistics.fmean(s.ci95[0] <= 1 <= s.ci95[1] for s in speedups),
        "median_half_width_pct": 100 * statistics.median((s.ci95[1] - s.ci95[0]) / 2 / s.ratio for s in speedups),
        "median_p50_ms": statistics.median(result.models[0].p50_ms for result in told),
        "median_blocks": statistics.median(result.protocol["blocks"] for result in told),
        "time_limit_reached": sum("time limit" in result.protocol["stopped"] for result in told),
        "worst_load_1m": max(result.conditions["after"]["load_1m"] or 0.0 for result in told),
        "comparison_s": (time.perf_counter() - started) / count,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the results file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=6, help="of the network with itself, for each batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-limit-s", type=float, default=20.0)
    parser.add_argument("--precision", type=float, default=0.01)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = build(config.Model(name="demo:resnet"), num_classes=10, input_shape=(1, 8, 8)).eval()
        path = Path(folder) / "demo.onnx"
        onnx_from_torch(network, torch.zeros(2, 1, 8, 8), path, opset=18, max_abs_diff=1e-3, metadata={})
        points = [point(path, batch, slowed, options) for batch in options.batches for slowed in SLOWED_PCT]
    for row in points:
        print(row)
    if options.out:
        words = ["python", "-m", "benchmarks.gate_power", *(sys.argv[1:] if arguments is None else arguments)]
        document = {"schema": 1, "command": " ".join(words), "environment": environment(), "n": options.comparisons}
        write_json(options.out, {**document, "points": points})


if __name__ == "__main__":
    main()
