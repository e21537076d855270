"""Every torchvision classification network, cut by demport and by torch-pruning: time, memory, and whether it is exact.

    python -m benchmarks.surgery --out benchmarks/results/surgery.cpu.json

Needs `pip install torch-pruning==1.6.1`. Every point is measured in a process of its own (cutting.py) and written as
soon as it is there; points that are in the file already are not measured again. Beside the file goes a
summary, `surgery_summary.cpu.json`, one point a tool. Exit 1 where demport misses a promise of its own.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence

from benchmarks import results
from benchmarks.results import ROOT, Point

TOOLS = ("demport", "torch-pruning")
BUILD_S = 600  # most a process may take beside the cut: building the network, and the law
SMALL = 100_000_000  # parameters


def names() -> list[str]:
    """Every classification network of the installed torchvision, the quantised ones left out."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def measured(name: str, tool: str, limit_s: int, memory_gib: int) -> Point:
    """One point, from a process of its own. Raises CalledProcessError where the benchmark itself fails."""
    command = [sys.executable, "-m", "benchmarks.surgery.cutting", name, tool, str(limit_s), str(memory_gib)]
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
    seconds = {n: p["cut_s"] for n, p in ours.items() if p.get("cut_s") is not None}
    ratios = [times[n] / seconds[n] for n in times if n in seconds]
    stopped = [p["stopped_s"] / seconds[n] for n, p in mine.items() if n in seconds and "stopped_s" in p]
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
    by_tool = {row["tool"]: row for row in rows}
    ours, missed = by_tool["demport"], []
    if ours["exact"] < ours["networks"]:
        missed.append(f"exact on {ours['exact']} of {ours['networks']} networks")
    for key, limit in (("slowest_s", 5), ("memory_mib", 2048)):
        if ours[key] is not None and ours[key] > limit:
            missed.append(f"{key} is {ours[key]:.3g}, over {limit}")
    if ours["within_1_s_pct"] is not None and ours["within_1_s_pct"] < 95:
        missed.append(f"within 1 s: {ours['within_1_s_pct']:.3g} % of the networks under 100 M parameters")
    ratio = by_tool.get("torch-pruning", {}).get("slower_than_demport")
    if ratio is not None and ratio < 5:
        missed.append(f"torch-pruning takes {ratio:.3g} times as long in the geometric mean, not 5")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("surgery", __doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: every classification network")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--limit-s", type=int, default=90, help="seconds a cut may take")
    parser.add_argument("--memory-gib", type=int, default=14, help="memory a process may use")
    options = parser.parse_args(arguments)
    line = results.command(parser, options)
    cases = [{"model": name, "tool": tool} for name in options.models or names() for tool in options.tools]

    def measure(case: Point) -> list[Point]:
        point = measured(case["model"], case["tool"], options.limit_s, options.memory_gib)
        print(f"{case['model']}  {case['tool']}  {point['outcome']}", file=sys.stderr)
        return [point]

    results.fill(options.out, line, cases, measure, math.inf)
    points = results.points_in(options.out)
    rows = summary(points)
    first, _, rest = options.out.name.partition(".")
    results.write(options.out.with_name(f"{first}_summary.{rest}"), line, rows, len(points))
    return results.judge(promises(rows))


if __name__ == "__main__":
    sys.exit(main())
