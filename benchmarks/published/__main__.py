"""Published figures of training methods, measured again with demport's methods, and whether they are met.

    python -m benchmarks.published --out benchmarks/results/published.cpu.json

Each check is the setting of its paper, with --share of the epochs; see the functions. Differences that all have in
common: SGD without Nesterov's look-ahead, weight decay beside the momentum. Points say their share; the command in a
file is of its last run. Checks that the file has already at this share are not measured again; --limit-s begins none
after so many seconds (exit 3). Exit 1 where a promise is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import real_data
from benchmarks.published import channels, masks, rounds
from benchmarks.published.promises import broken
from benchmarks.published.trainings import Budget
from benchmarks.results import Point, command, fill, judge, parser, points_in
from runtime.errors import EXIT_INCONCLUSIVE

CHECKS: Mapping[str, Callable[[int, Budget], list[Point]]] = {
    "rigl": masks.rigl,
    "snip": masks.snip,
    "snip_lenet5": masks.snip_lenet5,
    "han": rounds.han,
    "han_lenet5": rounds.han_lenet5,
    "lottery_ticket": rounds.lottery_ticket,
    "set": masks.set_,
    "truly_sparse": masks.truly_sparse,
    "ctre": masks.ctre,
    "nnrelief": rounds.nnrelief,
    "imp": rounds.imp,
    "variational": channels.variational,
    "ispasp": channels.ispasp,
}


def main(arguments: Sequence[str] | None = None) -> int:
    line = parser("published", __doc__, "published.cpu.json")
    line.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    line.add_argument("--seeds", type=int, nargs="+", default=[0])
    line.add_argument("--share", type=float, default=1.0, help="of the epochs that each check takes by itself")
    line.add_argument("--data", type=Path, default=real_data.DEFAULT, help="folder of the data sets")
    line.add_argument("--limit-s", type=float, default=float("inf"))
    options = line.parse_args(arguments)
    torch.set_num_threads(1)
    budget = Budget(options.share, options.data)
    share = f"{options.share:g}"
    cases: list[Point] = [
        {"check": name, "seed": seed, "share": share} for seed in options.seeds for name in options.only
    ]

    def measure(case: Point) -> list[Point]:
        return CHECKS[case["check"]](case["seed"], budget)

    text = command(line, options, ("data", "limit_s", "only"))
    if not fill(options.out, text, cases, measure, options.limit_s):
        return EXIT_INCONCLUSIVE
    return judge(broken(points_in(options.out)))


if __name__ == "__main__":
    sys.exit(main())
