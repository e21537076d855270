"""Residual streams tied or untied: MACs and latency of what is left of ResNet-18 and ResNet-50.

    python -m benchmarks.surgery.residual --out benchmarks/results/residual.cpu.json

Tied: a channel of the stream goes only if it is dead at every layer that writes to it. Untied: each block keeps its own
width, and index selections fit it to the stream. Both are timed in one paired comparison, with the dense network, and
over many openings (runtime/measure/latency.py). Cases that the file has already are not measured again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.results import Point
from benchmarks.surgery.deaths import SIDE, compared, exported, filled, half, inner, with_deaths
from pipeline.surgery import shrink
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS
from runtime.macs import macs

PATTERNS = {
    "half, each layer its own": (half, False),
    "half, the same in a stream": (half, True),
    "20 % of streams, 70 % inside blocks": (inner, False),
}
ALIGN, BATCHES = (1, 8), (1, 8)


def cases() -> list[Point]:
    return [
        {"model": model, "deaths": pattern, "align": align}
        for model in ("resnet18", "resnet50") for pattern in PATTERNS for align in ALIGN
    ]  # fmt: skip


def measured(case: Point, threads: int, time_limit_s: float) -> list[Point]:
    """dense, tied and untied at each batch size."""
    share, agree = PATTERNS[case["deaths"]]
    dense = with_deaths(case["model"], share, agree=agree)
    example = (torch.zeros(1, 3, SIDE, SIDE),)
    tied = shrink(dense, example, align=case["align"], residual="tied", verify=False)
    untied = shrink(dense, example, align=case["align"], residual="untied", verify=False)
    networks = {"dense": dense, "tied": tied.model, "untied": untied.model}
    counts = {name: macs(network, (3, SIDE, SIDE)) for name, network in networks.items()}
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = exported([*networks.values()], Path(folder))
        for batch in BATCHES:
            for name, row in zip(networks, timed(paths, batch, threads, time_limit_s), strict=True):
                sizes = {"params": sum(p.numel() for p in networks[name].parameters()), "macs": counts[name]}
                share_left = {"macs_pct": 100 * counts[name] / counts["dense"]}
                points.append({"residual": name, "batch": batch, **sizes, **share_left, **row})
    return points


def timed(paths: Sequence[Path], batch: int, threads: int, time_limit_s: float) -> list[Point]:
    """Latency of dense, tied, untied in turn. `speedup`: dense over this one, with its 95 % interval; of the untied
    network `over_tied` too: tied over untied, from a comparison of the two alone."""
    seen = compared(paths, batch, threads, time_limit_s)
    rows: list[Point] = [
        {"p50_ms": row.p50_ms, "p95_ms": row.p95_ms, "samples": row.n, "openings": seen.protocol["openings"]}
        for row in seen.models
    ]
    for row, speedup in zip(rows[1:], seen.speedups, strict=True):
        row["speedup"], (row["speedup_low"], row["speedup_high"]) = speedup.ratio, speedup.ci95
    (pair,) = compared(paths[1:], batch, threads, time_limit_s).speedups
    rows[2]["over_tied"], (rows[2]["over_tied_low"], rows[2]["over_tied_high"]) = pair.ratio, pair.ci95
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    return EXIT_PASS if filled("surgery.residual", __doc__, arguments, 30.0, cases(), measured) else EXIT_INCONCLUSIVE


if __name__ == "__main__":
    sys.exit(main())
