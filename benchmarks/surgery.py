"""Every torchvision classification network, cut by demport and by torch-pruning: time, memory, and whether it is exact.

    python -m benchmarks.surgery --out benchmarks/results/surgery.cpu.json

Needs `pip install torch-pruning==1.6.1`. Every point is measured in a process of its own (benchmarks/cutting.py) and
written as soon as it is there; points that are in the file already are not measured again. Beside the file goes a
summary, `surgery_summary.cpu.json`, one point a tool. Exit 1 where demport misses a promise of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from export.files import write_json
from runtime.device import environment
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS

ROOT = Path(__file__).parents[1]
TOOLS = ("demport", "torch-pruning")
BUILD_S = 600  # most a process may take beside the cut: building the network, and the law
SMALL = 100_000_000  # parameters
Point = dict[str, Any]


def names() -> list[str]:
    """Every classification network of the installed torchvision, the quantised ones left out."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def measured(name: str, tool: str, limit_s: int, memory_gib: int) -> Point:
    """One point, from a process of its own. Raises CalledProcessError where the benchmark itself fails."""
    command = [sys.executable, "-m", "benchmarks.cutting", name, tool, str(limit_s), str(memory_gib)]
    try:
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=limit_s + BUILD_S)
    except subprocess.TimeoutExpired:
        stopped = {"outcome": "time limit", "stopped_s": limit_s, "reason": f"stopped after {limit_s} s"}
        return {"model": name, "tool": tool, **stopped}
    if done.returncode < 0 or "MemoryError" in done.stderr[-2000:]:
        how = f"ended by signal {-done.returncode}" if done.returncode < 0 else "MemoryError"
        return {"model": name, "tool": tool, "outcome": "error", "reason": f"{how}, with {memory_gib} GiB to use"}
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)
    point: Point = json.loads(done.stdout.splitlines()[-1])
    return point


def summary(points: Sequence[Point]) -> list[Point]:
    """One point a tool, over the networks that both tools were asked to cut."""
    by_tool = {tool: {p["model"]: p for p in points if p["tool"] == tool} for tool in TOOLS}
    return [row_of(tool, mine, by_tool["demport"]) for tool, mine in by_tool.items() if mine]


def row_of(tool: str, mine: dict[str, Point], ours: dict[str, Point]) -> Point:
    """`slower_than_demport`: geometric mean of the time over demport's, of the networks that both finished; in
    `slower_at_least` those that the tool was stopped on count too, with the time after which it was stopped."""
    times = {name: p["cut_s"] for name, p in mine.items() if p.get("cut_s") is not None}
    small = [times.get(name, math.inf) for name, p in mine.items() if p.get("params", math.inf) < SMALL]
    known = {n: p["cut_s"] for n, p in ours.items() if p.get("cut_s") is not None}
    ratios = [times[n] / known[n] for n in times if n in known]
    stopped = [p["stopped_s"] / known[n] for n, p in mine.items() if n in known and "stopped_s" in p]
    outcomes = [p["outcome"] for p in mine.values()]
    return {
        "tool": tool,
        "networks": len(mine),
        "exact": outcomes.count("exact"),
        "law_broken": outcomes.count("law broken"),
        "errors": outcomes.count("error"),
        "over_time": outcomes.count("time limit"),
        "exact_pct": 100 * outcomes.count("exact") / len(mine),
        "within_1_s_pct": 100 * sum(t <= 1 for t in small) / len(small) if small else None,
        "median_s": statistics.median(times.values()) if times else None,
        "slowest_s": max(times.values(), default=None),
        "memory_mib": max((p["memory_mib"] for p in mine.values() if p.get("memory_mib") is not None), default=None),
        "slower_than_demport": statistics.geometric_mean(ratios) if ratios else None,
        "slower_at_least": statistics.geometric_mean(ratios + stopped) if ratios + stopped else None,
    }


def promises(rows: Iterable[Point]) -> list[str]:
    """What demport promised and misses: exact everywhere, in 1 s for 95 % of those under 100 M parameters and in 5 s
    for all, in under 2 GiB, and five times as fast as torch-pruning in the geometric mean."""
    found = {row["tool"]: row for row in rows}
    ours, missed = found["demport"], []
    if ours["exact"] < ours["networks"]:
        missed.append(f"exact on {ours['exact']} of {ours['networks']} networks")
    for key, limit in (("slowest_s", 5), ("memory_mib", 2048)):
        if ours[key] is not None and ours[key] > limit:
            missed.append(f"{key} is {ours[key]:.3g}, over {limit}")
    if ours["within_1_s_pct"] is not None and ours["within_1_s_pct"] < 95:
        missed.append(f"within 1 s: {ours['within_1_s_pct']:.3g} % of the networks under 100 M parameters")
    ratio = found.get("torch-pruning", {}).get("slower_than_demport")
    if ratio is not None and ratio < 5:
        missed.append(f"torch-pruning takes {ratio:.3g} times as long in the geometric mean, not 5")
    return missed


def document(command: str, points: Sequence[Point]) -> dict[str, Any]:
    machine = environment()
    with contextlib.suppress(PackageNotFoundError):
        machine["versions"]["torch-pruning"] = version("torch-pruning")
    return {"schema": 1, "command": command, "environment": machine, "n": len(points), "points": list(points)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surgery", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results file; added to where it exists")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: every classification network")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--limit-s", type=int, default=120, help="seconds a cut may take")
    parser.add_argument("--memory-gib", type=int, default=12, help="memory a process may use")
    given = parser.parse_args(arguments)
    points: list[Point] = json.loads(given.out.read_text("utf-8"))["points"] if given.out.is_file() else []
    options = f"--limit-s {given.limit_s} --memory-gib {given.memory_gib}"
    command = f"python -m benchmarks.surgery --out benchmarks/results/{given.out.name} {options}"
    for name in given.models or names():
        for tool in given.tools:
            if any(p["model"] == name and p["tool"] == tool for p in points):
                continue
            points.append(measured(name, tool, given.limit_s, given.memory_gib))
            write_json(given.out, document(command, points))
            last = points[-1]
            print(f"{name}  {tool}  {last['outcome']}  {last.get('cut_s') or float('nan'):.3g} s", file=sys.stderr)
    rows = summary(points)
    first, _, rest = given.out.name.partition(".")
    write_json(given.out.with_name(f"{first}_summary.{rest}"), {**document(command, rows), "n": len(points)})
    missed = promises(rows)
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    return EXIT_GATE_FAILED if missed else EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
