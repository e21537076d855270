"""Public architectures with dead channels, cut by demport: what goes, whether it is exact, and why the rest stays.

    python -m benchmarks.coverage --out benchmarks/results/coverage.cpu.json

Networks of torchvision, timm, transformers and ultralytics (those that are installed), random weights, no downloads.
Three of every eight channels are dead in every layer but those that make the outputs: which three is drawn at random
for each network, and the same everywhere in it, so that members of a residual stream and heads of attention agree.
Each network is cut in a process of its own, without the law (`cut_s`) and under it (`law_s`, what it adds; seconds of
the processor, one thread); then it is compared with the network given once more, apart from the law. Networks over
--params million parameters are left out. Points that are in the file already are not measured again. Beside it goes
`coverage_summary`. Exit 1 where a promise is broken: 97 % of the dead channels go, no network is wrong, none raises,
and for ResNet-50 the law takes at most five times the time of the cut.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from benchmarks import results
from benchmarks.coverage.cut import measure, warm_up
from benchmarks.coverage.zoo import specs
from benchmarks.results import Point

SHARE_PCT = 97.0
RATIO = 5.0  # most that the law may take of the cut's time, for ResNet-50
TIMED = (
    "torchvision:resnet50", "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:densenet121",
    "torchvision:swin_t", "timm:deit_tiny_patch16_224", "ultralytics:yolov8n",
)  # fmt: skip
"""Their times are medians of `REPEATS`; the first has a promise."""
REPEATS = 5
OUTCOMES = ("exact", "wrong", "error", "over time", "too large")


def child(pipe: Connection, spec: str, million: float, seed: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pipe.send(measure(spec, million, seed, REPEATS if spec in TIMED else 1))


def measured(spec: str, limit_s: float, million: float, seed: int) -> Point:
    """A point of a process of its own, ended after `limit_s` seconds."""
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs, spec, million, seed))
    process.start()
    theirs.close()
    point: Point = {"network": spec, "outcome": "over time", "reason": f"stopped after {limit_s:g} s"}
    try:
        if mine.poll(limit_s):
            point = mine.recv()
    except EOFError:
        process.join()
        point = {"network": spec, "outcome": "error", "reason": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return point


def summary(points: Sequence[Point]) -> list[Point]:
    """A row for each library, and one for all."""
    libraries = list(dict.fromkeys(p["network"].partition(":")[0] for p in points))
    return [row(name, [p for p in points if p["network"].startswith(f"{name}:")]) for name in libraries] + [
        row("all", points)
    ]


def row(library: str, points: Sequence[Point]) -> Point:
    cut = [p for p in points if p["outcome"] in ("exact", "wrong")]
    dead, gone = (sum(p[key] for p in cut) for key in ("dead", "gone"))
    outcomes = [p["outcome"] for p in points]
    return {
        "library": library,
        "networks": len(cut),
        **{
            name.replace(" ", "_"): outcomes.count(name)
            for name in ("exact", "wrong", "error", "over time", "too large")
        },
        "dead": dead,
        "gone_pct": 100 * gone / dead if dead else None,
        "networks_97_pct": 100 * sum(p["gone"] >= 0.97 * p["dead"] for p in cut) / len(cut) if cut else None,
        "cut_s": median(p["cut_s"] for p in cut) if cut else None,
        "law_s": median(p["law_s"] for p in cut) if cut else None,
    }


def times(points: Sequence[Point]) -> list[Point]:
    """Of single networks what the cut takes, and what the law adds to it."""
    rows = [(p["network"], p["cut_s"], p["law_s"]) for p in points if p["network"] in TIMED and p["outcome"] == "exact"]
    return [{"timed": n, "cut_alone_s": cut, "the_law_s": law, "law_over_cut": law / cut} for n, cut, law in rows]


def reasons(points: Sequence[Point]) -> list[Point]:
    """Why dead channels stay, the most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for p in points:
        for reason, n in (p.get("stays") or {}).items():
            counts.setdefault(reason, {})[p["network"]] = n
    rows = [{"stays_because": r, "channels": sum(c.values()), "in_networks": len(c)} for r, c in counts.items()]
    return sorted(rows, key=lambda one: -one["channels"])


def promises(points: Sequence[Point]) -> list[str]:
    whole, missed = row("all", points), []
    for key in ("wrong", "error", "over_time"):
        if whole[key]:
            missed.append(f"{whole[key]} networks: {key.replace('_', ' ')}")
    if whole["gone_pct"] is not None and whole["gone_pct"] < SHARE_PCT:
        missed.append(f"{whole['gone_pct']:.4g} % of the dead channels go, not {SHARE_PCT:g}")
    for p in points:
        if p["network"] == TIMED[0] and p["law_s"] > RATIO * p["cut_s"]:
            missed.append(f"{TIMED[0]}: the law takes {p['law_s'] / p['cut_s']:.2g} times the cut, not {RATIO:g}")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("coverage", __doc__, "coverage.cpu.json")
    parser.add_argument("--networks", nargs="+", metavar="LIBRARY:NAME", help="default: every one of the zoo")
    parser.add_argument("--case-limit-s", type=float, default=240.0, help="seconds a network may take")
    parser.add_argument("--params", type=float, default=60.0, help="networks of more million parameters are left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=math.inf, help="no new network after so many seconds (exit 3)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    line = results.command(parser, options, ("limit_s",))

    def point_of(case: Point) -> list[Point]:
        point = measured(case["network"], options.case_limit_s, options.params, options.seed)
        share = f"{point['gone']} of {point['dead']}" if "dead" in point else point["reason"]
        print(f"{point['network']}  {point['outcome']}  {share}", file=sys.stderr)
        return [point]

    warm_up()
    cases: list[Point] = [{"network": spec} for spec in options.networks or specs()]
    whole = results.fill(options.out, line, cases, point_of, options.limit_s)
    points = results.points_in(options.out)
    first, _, rest = options.out.name.partition(".")
    rows: list[Any] = summary(points) + reasons(points) + times(points)
    results.write(options.out.with_name(f"{first}_summary.{rest}"), line, rows, len(points))
    return results.judge(promises(points)) if whole else 3


if __name__ == "__main__":
    sys.exit(main())
