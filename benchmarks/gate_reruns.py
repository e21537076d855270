"""How often `demport gate` is right where the truth is known: runs of the same networks, and of compact slowed down.

    python -m benchmarks.gate_reruns --runs 12 --rows build/reruns.jsonl --out benchmarks/results/gate_reruns.cpu.json

A run times dense and compact as `demport check` does, in every form and at every batch of the quickstart. Compact is
dense with half of its channels, drawn at random, cut out up to multiples of --align. Each run is judged by a baseline
made of each other one: whatever fails is a false alarm, because nothing changed. For each share of --slowed there are
half as many runs in which compact works on after each launch for that share of the time that it took, judged by the
same baselines: there a gate that passes is a miss, and one that is undecided says so. Beside them stand single sittings
of SITTING_S, one session each, as a comparison without openings takes them: what their interval tells, and how far they
really differ. Rows and going on: as benchmarks.gate_power.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gate_power import Slowed, measured_before
from export.files import write_json
from export.onnx_from_torch import onnx_from_torch
from pipeline import config
from pipeline.exporting import ROLES, Role
from pipeline.latencies import latencies
from pipeline.measuring import Bench, Graphs, Hop, pairs_of
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.surgery import shrink
from runtime.backend import Session, open_session
from runtime.baseline import updated
from runtime.device import environment, fingerprint
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS
from runtime.feeds import random_feeds
from runtime.figures import is_ratio
from runtime.judging import judge
from runtime.latency import compare

SHAPE = (1, 8, 8)
SITTING_S, SITTINGS = 1.0, 20
ALLOWED_FALSE_PCT, ALLOWED_FOUND_PCT = 1.0, 95.0
Row = dict[str, Any]


class Images:
    """Where the bench takes its images from."""

    def batches(self, batch: int) -> Any:
        yield torch.zeros(batch, *SHAPE).numpy(), None


class SlowedBench(Bench):
    """Compact's launches last longer by a share of themselves."""

    share = 0.0

    def open(self, role: Role, hop: Hop) -> Session:
        session: Any = super().open(role, hop)
        return Slowed(session, self.share) if role == "compact" and self.share else session


def networks(align: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dense = build(config.Model(name="demo:resnet"), num_classes=10, input_shape=SHAPE).eval()
    dying = copy.deepcopy(dense)
    for norm in (one for one in dying.modules() if isinstance(one, nn.BatchNorm2d)):
        dead = torch.randperm(norm.num_features)[: norm.num_features // 2]
        with torch.no_grad():
            norm.weight[dead] = norm.bias[dead] = 0.0
    return {"dense": dense, "compact": shrink(dying, (torch.zeros(2, *SHAPE),), align=align).model.eval()}


def graphs_of(nets: dict[str, nn.Module], folder: Path) -> Graphs:
    graphs: dict[str, dict[Role, Path]] = {"simplified": {}}
    for role in ROLES:
        graphs["simplified"][role] = path = folder / f"{role}.onnx"
        if not path.exists():
            onnx_from_torch(nets[role], torch.zeros(2, *SHAPE), path, opset=18, max_abs_diff=1e-3, metadata={})
    return graphs


def sittings(graphs: Graphs) -> list[Row]:
    """Each batch's comparison in one sitting, again and again, the batches in turn."""
    rows: list[Row] = []
    for batch in config.Check().batch_sizes * SITTINGS:
        with ExitStack() as stack:
            paths = (graphs["simplified"][role] for role in ROLES)
            sessions = [stack.enter_context(closing(open_session(p, device="cpu", threads=2))) for p in paths]
            feeds = [random_feeds(session, batch) for session in sessions]
            told = compare(sessions, feeds, time_limit_s=SITTING_S, precision=1e-9).speedups[0]
        rows.append({"device": fingerprint(), "sitting": batch, "ratio": told.ratio, "ci95": told.ci95})
    return rows


def run(slowed_pct: float, nets: dict[str, nn.Module], graphs: Graphs) -> Row:
    """A report, as far as the gate looks at it."""
    bench = SlowedBench(config.Check(), nets, graphs, Images(), "cpu")  # type: ignore[arg-type]
    bench.share = slowed_pct / 100
    measured = latencies(bench, pairs_of(graphs, (), {role: {} for role in ROLES}), {r: {} for r in ROLES}, Silent())
    for batches in (batches for forms in measured.values() for batches in forms.values()):
        for entry in batches.values():
            for one in (entry, entry["end_to_end"]):
                for role in ROLES:
                    del one[role]["samples_ms"]
    size = {"params": 1, "macs": 1, "bytes": 1, "accuracy": {}}
    return {
        "device": fingerprint(), "slowed_pct": slowed_pct, "name": "reruns", "environment": environment(),
        "models": dict.fromkeys(ROLES, size), "latency": measured, "verdict": {"status": "pass", "gates": []},
    }  # fmt: skip


def differing(rows: Sequence[Row]) -> list[Row]:
    """For sittings and runs of each batch on ONNX Runtime: the half-width that one tells, and how far they differ: 1.96
    standard deviations, and the same by the median deviation, which odd ones do not move."""
    found = []
    for batch in config.Check().batch_sizes:
        alone = [row for row in rows if row.get("sitting") == batch]
        plain = (row["latency"]["onnxruntime"]["fp32"] for row in rows if row.get("slowed_pct") == 0)
        whole = [entries[f"b{batch}"] for entries in plain if f"b{batch}" in entries]
        handovers_us = [entry["protocol"]["conditions"].get("handover_us") for entry in whole]
        for how, told in (
            (f"one sitting of {SITTING_S:g} s", alone), ("openings, as a check", [one["speedup"] for one in whole]),
        ):  # fmt: skip
            if len(told) > 1:
                found.append({"measured": f"batch {batch}, {how}", **spread(told)})
        if len(whole) > 1 and all(handovers_us):
            found[-1] |= {"lowest_handover_us": min(handovers_us), "highest_handover_us": max(handovers_us)}
    return found


def spread(told: Sequence[Row]) -> Row:
    halves = [50 * (one["ci95"][1] - one["ci95"][0]) / one["ratio"] for one in told]
    logs = [100 * math.log(one["ratio"]) for one in told]
    usual = 1.4826 * statistics.median(abs(one - statistics.median(logs)) for one in logs)
    return {
        "n": len(told),
        "lowest_ratio": min(one["ratio"] for one in told),
        "median_ratio": statistics.median(one["ratio"] for one in told),
        "highest_ratio": max(one["ratio"] for one in told),
        "told_half_width_pct": statistics.median(halves), "usual_spread_pct": 1.96 * usual,
        "spread_pct": 1.96 * statistics.stdev(logs),
    }  # fmt: skip


def points(rows: Sequence[Row]) -> list[Row]:
    """Three points for every slowing: how the gates ruled on ratios, on times, and as a whole, over all pairs of a
    baseline and a run."""
    rows = [row for row in rows if "slowed_pct" in row]
    plain = [row for row in rows if not row["slowed_pct"]]
    found = []
    for slowed in sorted({row["slowed_pct"] for row in rows}):
        runs = [row for row in rows if row["slowed_pct"] == slowed]
        pairs = [(before, now) for before in plain for now in runs if before is not now]
        verdicts = [judge(now, updated(before, None)) for before, now in pairs]
        gates = [gate for verdict in verdicts for gate in verdict.gates if "." in gate.name.removeprefix("baseline.")]
        for kind in ("ratio", "time"):
            of_kind = [g for g in gates if is_ratio(g.name.removeprefix("baseline.")) == (kind == "ratio")]
            told = Counter(gate.status for gate in of_kind)
            found.append({
                "run": changed(slowed), "slowed_pct": slowed, "figures": kind, "runs": len(runs), "gates": len(of_kind),
                **{status: told[status] for status in ("pass", "inconclusive", "fail")},
                "failed_pct": 100 * told["fail"] / len(of_kind),
                "disturbed": sum("disturbed" in g.reason or "doubtful" in g.reason for g in of_kind),
            })  # fmt: skip
        found.append({
            "run": changed(slowed), "slowed_pct": slowed, "figures": "whole gate", "runs": len(runs),
            "gates": len(verdicts),
            **{s: sum(v.status == s for v in verdicts) for s in ("pass", "inconclusive", "fail")},
            "failed_pct": 100 * sum(v.status == "fail" for v in verdicts) / len(verdicts),
        })  # fmt: skip
    return found


def changed(slowed_pct: float) -> str:
    return f"compact slowed by {slowed_pct:g} %" if slowed_pct else "nothing changed"


def missed(told: Sequence[Row]) -> list[str]:
    """Promises that these points break."""
    broken = []
    for p in told:
        what = f"{p['run']}, {p['figures']}"
        if p["figures"] != "whole gate" and not p["slowed_pct"] and p["failed_pct"] > ALLOWED_FALSE_PCT:
            broken.append(f"{what}: {p['failed_pct']:.2f} % false alarms, over {ALLOWED_FALSE_PCT:g}")
        if p["figures"] == "whole gate" and p["slowed_pct"] and 100 - 100 * p["pass"] / p["gates"] < ALLOWED_FOUND_PCT:
            broken.append(f"{what}: {p['pass']} of {p['gates']} passed")
    return broken


def missing(
    rows: Sequence[Row], runs: int, slowed_pct: Sequence[float], nets: dict[str, nn.Module], graphs: Graphs
) -> Iterator[list[Row]]:
    """What is still to be measured, measured, in turn, so that every stretch of time holds some of each."""
    done = sum("slowed_pct" in row for row in rows)
    if not any("sitting" in row for row in rows):
        yield sittings(graphs)
    for slowed in ([0.0, 0.0, *slowed_pct] * (runs // 2))[done:]:
        yield [run(slowed, nets, graphs)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="of the networks as they are; half as many slowed")
    parser.add_argument("--slowed", type=float, nargs="+", default=[10.0, 25.0], help="percent")
    parser.add_argument("--align", type=int, default=1, help="compact's channels stay up to this multiple")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines: goes on with the runs that are there")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="stop, and keep what there is")
    parser.add_argument("--out", type=Path, help="results file")
    given = parser.parse_args(arguments)
    rows, end = measured_before(given.rows), time.monotonic() + given.limit_s
    nets = networks(given.align)
    with tempfile.TemporaryDirectory() as folder, given.rows.open("a", encoding="utf-8") as keep:
        graphs = graphs_of(nets, Path(folder))
        for new in missing(rows, given.runs, given.slowed, nets, graphs):
            rows += new
            print("\n".join(json.dumps(one, allow_nan=False) for one in new), file=keep, flush=True)
            if time.monotonic() > end:
                break
    told = points(rows)
    for one in (*told, *differing(rows)):
        print(one)
    if given.out:
        command = shlex.join(
            ["python", "-m", "benchmarks.gate_reruns", *(sys.argv[1:] if arguments is None else arguments)]
        )
        head = {"schema": 1, "command": command, "environment": environment(), "n": given.runs}
        write_json(given.out, {**head, "points": [*told, *differing(rows)]})
    for text in (broken := missed(told)):
        print(f"missed: {text}", file=sys.stderr)
    return EXIT_GATE_FAILED if broken else EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
