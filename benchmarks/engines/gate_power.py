"""The power of the gate on latency where the truth is known: an accepted network against itself and slowed copies.

    python -m benchmarks.engines.gate_power --comparisons 16 --out benchmarks/results/gate_power.cpu.json

The rule is that of `demport gate` with its default allowance of 5 %: itself should pass and never fail, a copy slowed
by 10 % should fail and never pass, and one slowed by 5 %, at the limit, should mostly be inconclusive.

A slowed copy works on after each launch for 5 or 10 % of the time that launch took (and the few microseconds of doing
so, which for a network of 50 us are some percent more). With c comparisons, c are made of the network with itself and
c / 2 with each slowed copy, in every case; with busy neighbours a fifth of them, as they last longer. AT_ONCE of them
go on in turn, opening by opening, as those of a check do.

Every comparison is added to the --rows file when its turn is over; started again with the same file, the script goes on
where it stopped, so that a shared machine need be alone only for --limit-s at a time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from export.onnx.from_torch import onnx_from_torch
from pipeline import config
from pipeline.models import build
from runtime.backends import Session, open_session
from runtime.backends.feeds import random_feeds
from runtime.device import environment, fingerprint
from runtime.errors import UserError
from runtime.files import write_json
from runtime.gate.baseline import Rules
from runtime.gate.comparison import latency_gate
from runtime.measure.latency import Comparison, Running, in_turn

SLOWED_PCT = (0, 5, 10)
AT_ONCE = 24
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """`busy` other processes compute all the time; `share` of the comparisons are made."""

    batch: int
    threads: int
    busy: int = 0
    share: float = 1.0


CASES = {
    "batch 32, 1 thread": Case(32, 1),
    "batch 1, 1 thread": Case(1, 1),
    "batch 32, 2 threads": Case(32, 2),
    "batch 32, 1 thread, 2 busy neighbours": Case(32, 1, busy=2, share=0.2),
}


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


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """That many processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def under_way(path: Path, case: Case, slowed_pct: int, time_limit_s: float, precision: float) -> Running:
    """A comparison of the network with itself, or with a slowed copy."""

    def plain() -> Session:
        return open_session(path, device="cpu", threads=case.threads)

    def other() -> Session:
        session: Any = Slowed(plain(), slowed_pct / 100) if slowed_pct else plain()
        return session  # type: ignore[no-any-return]

    with closing(plain()) as session:
        feed = random_feeds(session, case.batch)
    return Running([plain, other], [feed, feed], time_limit_s=time_limit_s, precision=precision)


def row_of(name: str, slowed_pct: int, comparison: Comparison) -> Row:
    """The figures of one comparison."""
    speedup = comparison.speedups[0]
    return {
        "device": fingerprint(),
        "case": name,
        "slowed_pct": slowed_pct,
        "status": latency_gate(name, comparison, Rules().latency or 0.0).status,
        "ratio": round(speedup.ratio, 5),
        "ci95": [round(edge, 5) for edge in speedup.ci95],
        "detectable": round(speedup.detectable, 4),
        "p50_ms": round(comparison.models[0].p50_ms, 5),
        "blocks": comparison.protocol["blocks"],
        "openings": comparison.protocol["openings"],
        "time_limit": "time limit" in comparison.protocol["stopped"],
        "others_busy_pct": comparison.conditions["others_busy_pct"],
        "stolen_pct": comparison.conditions["stolen_pct"],
    }


def point(name: str, slowed_pct: int, rows: Sequence[Row]) -> Row:
    """What the gate says of one case and slowing, and how far the ratio lies from the truth."""
    statuses = [row["status"] for row in rows]
    ratios = [row["ratio"] for row in rows]
    halves = [(row["ci95"][1] - row["ci95"][0]) / 2 / row["ratio"] for row in rows]
    wrong = {0: "fail", 10: "pass"}.get(slowed_pct)
    return {
        "case": name,
        "against": f"a copy slowed by {slowed_pct} %" if slowed_pct else "itself",
        "comparisons": len(rows),
        **{status: statuses.count(status) for status in ("pass", "fail", "inconclusive")},
        "wrong_pct": 100 * statuses.count(wrong) / len(rows) if wrong else None,
        "lowest_ratio": min(ratios),
        "median_ratio": statistics.median(ratios),
        "highest_ratio": max(ratios),
        "median_half_width_pct": 100 * statistics.median(halves),
        "median_detectable": statistics.median(row["detectable"] for row in rows),
        "median_p50_ms": statistics.median(row["p50_ms"] for row in rows),
        "median_blocks": statistics.median(row["blocks"] for row in rows),
        "median_openings": statistics.median(row["openings"] for row in rows),
        "time_limit_reached": sum(row["time_limit"] for row in rows),
        "most_others_busy_pct": max(row["others_busy_pct"] for row in rows),
        "most_stolen_pct": max(row["stolen_pct"] for row in rows),
    }


def points(rows: Sequence[Row]) -> list[Row]:
    """One point for each case and slowing that has comparisons."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["slowed_pct"]), []).append(row)
    order = sorted(groups, key=lambda key: (list(CASES).index(key[0]), key[1]))
    return [point(*key, groups[key]) for key in order]


def remaining(names: Sequence[str], comparisons: int, rows: Sequence[Row]) -> Iterator[tuple[str, int]]:
    """Cases and slowings still to compare, in turn, so that every stretch of time holds some of each."""
    missing = {}
    for name in names:
        for slowed in SLOWED_PCT:
            done = sum(row["case"] == name and row["slowed_pct"] == slowed for row in rows)
            share = CASES[name].share * (1.0 if slowed == 0 else 0.5)
            missing[name, slowed] = max(1, int(comparisons * share)) - done
    while any(count > 0 for count in missing.values()):
        for key, count in missing.items():
            if count > 0:
                missing[key] -= 1
                yield key


def measured_before(path: Path) -> list[Row]:
    """The comparisons of a file of rows; UserError where they were made on another machine."""
    rows: list[Row] = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    here = fingerprint()
    if there := next((row["device"] for row in rows if row["device"] != here), None):
        raise UserError(f"{path} was measured on {there}", f"this machine, {here}", "name another file")
    return rows


def measure(options: argparse.Namespace, rows: list[Row], log: TextIO | None) -> None:
    """Add rows, each at once a line of `log`, until nothing is missing or the time is over."""
    end = time.monotonic() + options.limit_s
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = build(config.Model(name="demo:resnet"), num_classes=10, input_shape=(1, 8, 8)).eval()
        path = Path(folder) / "demo.onnx"
        onnx_from_torch(network, torch.zeros(2, 1, 8, 8), path, opset=18, max_abs_diff=1e-3, metadata={})
        for several in chunks(list(remaining(options.cases, options.comparisons, rows))):
            if time.monotonic() > end:
                break
            cases = [(name, CASES[name], slowed) for name, slowed in several]
            with neighbours(cases[0][1].busy):
                limits = options.time_limit_s, options.precision
                results = in_turn([under_way(path, case, slowed, *limits) for _, case, slowed in cases])
            for (name, _, slowed), one in zip(cases, results, strict=True):
                rows.append(row_of(name, slowed, one))
                if log:
                    print(json.dumps(rows[-1], allow_nan=False), file=log, flush=True)
            print(f"{len(rows)}: {rows[-1]}", file=sys.stderr)


def chunks(several: Sequence[tuple[str, int]]) -> Iterator[Sequence[tuple[str, int]]]:
    """AT_ONCE at a time, those with busy neighbours apart."""
    for busy in sorted({CASES[name].busy for name, _ in several}):
        alike = [one for one in several if CASES[one[0]].busy == busy]
        for start in range(0, len(alike), AT_ONCE):
            yield alike[start : start + AT_ONCE]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the points, and writes the results file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=6, help="of the network with itself, in each case")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--time-limit-s", type=float, default=6.0, help="of one comparison")
    parser.add_argument("--precision", type=float, default=0.02, help="half-width at which a comparison ends")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="stop, and keep what there is")
    parser.add_argument("--rows", type=Path, help="JSON lines: goes on with the comparisons that are there")
    parser.add_argument("--out", type=Path, help="results file")
    options = parser.parse_args(arguments)
    rows = measured_before(options.rows) if options.rows else []
    with options.rows.open("a", encoding="utf-8") if options.rows else nullcontext() as log:
        measure(options, rows, log)
    for one in points(rows):
        print(one)
    if options.out:
        command = shlex.join(
            ["python", "-m", "benchmarks.engines.gate_power", *(sys.argv[1:] if arguments is None else arguments)]
        )
        document = {"schema": 1, "command": command, "environment": environment(), "n": options.comparisons}
        write_json(options.out, {**document, "points": points(rows)})


if __name__ == "__main__":
    main()
