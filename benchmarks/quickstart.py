"""A quickstart with several seeds: what DemP took away, what it cost in the task's metric, what it gained in latency.

    python -m benchmarks.quickstart --seeds 0 1 2 --out benchmarks/results/quickstart.cpu.json
    python -m benchmarks.quickstart --config detection --seeds 0 --out benchmarks/results/quickstart_detection.cpu.json

Each seed is one `demport run configs/quickstart.yaml --set seed=N` in its own process. Two points a seed: the dense
network and the compact one, both as simplified fp32 ONNX. Exit 1 where the means miss a promise of the quickstart.
A run begins when other programs leave the processor alone: latencies measured beside them mean nothing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import results
from benchmarks.results import ROOT, Point
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_USAGE, UserError

CONFIGS = ("quickstart", "segmentation", "detection")
BACKEND, BATCHES = "onnxruntime", (1, 32)


def measured(config: str, seed: int, folder: Path, overrides: Sequence[str]) -> list[Point]:
    """The points of one seed of a config. Raises CalledProcessError where the run fails; a failed gate is a result."""
    sets = [word for one in (f"seed={seed}", *overrides) for word in ("--set", one)]
    command = [
        sys.executable,
        "-m",
        "demport",
        "run",
        f"configs/{config}.yaml",
        "--out",
        str(folder),
        "--device",
        "cpu",
        *sets,
    ]
    start = time.perf_counter()
    done = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if done.returncode not in (EXIT_PASS, EXIT_GATE_FAILED, EXIT_INCONCLUSIVE):
        raise subprocess.CalledProcessError(done.returncode, command)
    return points_of(json.loads((folder / "report.json").read_text("utf-8")), seed, seconds)


def wait_for_quiet(busy_pct: float, patience_s: float, sample_s: float = 5.0) -> float:
    """Waits until all cores together are at most this busy over `sample_s` seconds; how busy they were, in percent.

    Raises UserError when the patience is at an end.
    """
    end = time.monotonic() + patience_s
    while (busy := psutil.cpu_percent(interval=sample_s)) > busy_pct:
        if time.monotonic() > end:
            raise UserError(
                f"other programs keep {busy:.0f} % of the processor busy",
                f"at most {busy_pct:.0f} %",
                "stop them, or allow more with --busy-pct",
            )
    return busy


def points_of(report: dict[str, Any], seed: int, run_s: float) -> list[Point]:
    """dense, then compact; figures of a run as a whole stand on the compact one."""
    stages, metric = {stage["folder"]: stage["seconds"] for stage in report["stages"]}, report["metric_name"]
    rows = []
    for name, folder in (("dense", "10-dense"), ("compact", "20-sparse")):
        model = report["models"][name]
        row: Point = {"model": name, "seed": seed, f"{metric}_pct": 100 * model["accuracy"]["simplified"]}
        row |= {key: model[key] for key in ("params", "macs", "channels")}
        row |= {"onnx_kib": model["bytes"] / 1024, "training_s": stages[folder]}
        for batch in BATCHES:
            timing = report["latency"][BACKEND]["fp32"][f"b{batch}"][name]
            row |= {f"batch_{batch}_{key}": timing[key] for key in ("p50_ms", "best_ms")}
        rows.append(row)
    surgery = report["surgery"]
    rows[1] |= {
        "dead_channels_pct": 100 * surgery["channels_dead"] / surgery["channels_before"],
        "macs_of_dense_pct": 100 * rows[1]["macs"] / rows[0]["macs"],
        "metric": metric,
        "drop_pp": rows[0][f"{metric}_pct"] - rows[1][f"{metric}_pct"],
        "max_abs_diff": surgery["max_abs_diff"],
        "law_rel_diff": surgery["law"]["max_rel_diff"],
        "verdict": report["verdict"]["status"],
        "run_s": run_s,
    }
    for batch in BATCHES:
        speedup = report["latency"][BACKEND]["fp32"][f"b{batch}"]["speedup"]
        rows[1][f"batch_{batch}_speedup"] = speedup["ratio"]
        rows[1][f"batch_{batch}_speedup_low"], rows[1][f"batch_{batch}_speedup_high"] = speedup["ci95"]
    return rows


def promises(points: Sequence[Point]) -> dict[str, bool]:
    """What a quickstart promises -> whether these points keep it. Means over the seeds, but for the last two."""
    compact = [point for point in points if point["model"] == "compact"]

    def mean(key: str) -> float:
        return statistics.fmean(point[key] for point in compact)

    certain = {"its confidence interval above 1 with every seed": min(p["batch_32_speedup_low"] for p in compact) > 1}
    if (metric := compact[0]["metric"]) != "accuracy":
        return {
            f"{metric} within 1.0 point": mean("drop_pp") <= 1.0,
            "batch 32 at least 2x faster": mean("batch_32_speedup") >= 2.0,
            **certain,
            "the law within 1e-9 with every seed": max(p["law_rel_diff"] for p in compact) <= 1e-9,
        }
    return {
        "at least 45 % of the channels dead": mean("dead_channels_pct") >= 45,
        "at most half of the MACs": mean("macs_of_dense_pct") <= 50,
        "accuracy within 1.0 point": mean("drop_pp") <= 1.0,
        "batch 32 at least 1.5x faster": mean("batch_32_speedup") >= 1.5,
        **certain,
        "compact equal to 1e-5 with every seed": max(p["max_abs_diff"] for p in compact) <= 1e-5,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("quickstart", __doc__, "quickstart.cpu.json")
    parser.add_argument("--config", choices=CONFIGS, default=CONFIGS[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", metavar="section.key=value", action="append", default=[])
    parser.add_argument("--busy-pct", type=float, default=10.0, help="How busy other programs may be at the start.")
    parser.add_argument("--patience-s", type=float, default=600.0, help="How long to wait for that.")
    options = parser.parse_args(arguments)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            try:
                busy = wait_for_quiet(options.busy_pct, options.patience_s)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return EXIT_USAGE
            rows = measured(options.config, seed, Path(folder) / str(seed), options.set)
            points += [row | {"busy_before_pct": busy} for row in rows]
    line = results.command(parser, options, ("busy_pct", "patience_s"))
    results.write(options.out, line, points, len(options.seeds), promises=(held := promises(points)))
    return results.judge([text for text, holds in held.items() if not holds])


if __name__ == "__main__":
    sys.exit(main())
