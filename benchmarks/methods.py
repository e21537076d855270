"""DemP beside what users have: the same data, the same training budget, MACs and latency of the final networks.

    python -m benchmarks.methods --out benchmarks/results/methods.cpu.json

Each run is one method, one share of MACs and one seed: `dense`; `narrow`, a dense network built small from the start;
`demp plain` and `demp macs`, the penalty at several strengths; `steered` to the share, by importance per channel, per
MACs and per latency, and `aligned` to widths that are multiples of 8; `slimming` and `group norm`, torch-pruning's
BN-scale and group-norm pruners, sparse training for half of the budget, then pruned, then fine-tuned. All take the
same number of steps, computed in bf16. OTO (only_train_once 3.0.1) cannot be imported beside torch 2.15 and is left
out. Runs that the file has already are not made again; `--limit-s` begins no run after so many seconds (exit 3). When
all are there, and one of them lacks its latency, all final networks are timed, each in turn with the dense one of its
seed, over many openings (runtime/openings.py): ONNX Runtime, one thread, batch 32.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks import peers, real_data
from export.files import write_json
from export.onnx_from_torch import onnx_from_torch
from pipeline import config
from pipeline.data import Dataset
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.training.loop import accuracy_of
from pipeline.training.repeatable import derived_seed
from pipeline.training.stage import Task, train_demp, train_dense, trained_network
from runtime.backend import open_session
from runtime.device import environment
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS
from runtime.latency import Comparison
from runtime.macs import macs
from runtime.openings import Running, in_turn

MODEL, WIDTH, BLOCKS = "demo:resnet", 16, 2
SHARES = {
    0.2: (
        "narrow",
        "steered plain",
        "steered macs",
        "steered latency",
        "slimming",
        "group norm",
        "steered macs aligned",
    ),
    0.25: ("narrow", "steered macs aligned"),  # of narrow half the width, 8, which kernels like
    0.35: ("narrow", "steered macs", "slimming", "group norm", "steered macs aligned"),
}
ALIGNED = 8
STRENGTHS = {"plain": (0.003, 0.01), "macs": (0.01,)}
FAST = {"amp": "bf16", "channels_last": True}
BATCH, OPSET = 32, 18
TIMED_S, PRECISION = 20.0, 0.01  # of a comparison's own openings; half-width of its interval
Point = dict[str, Any]
Case = tuple[str, float, int]  # method, share of MACs or strength, seed


@dataclass(frozen=True)
class Given:
    """The command line."""

    out: Path
    work: Path
    data: Path
    name: str
    side: int
    seeds: tuple[int, ...]
    epochs: int
    workers: int
    limit_s: float
    shares: tuple[float, ...] = tuple(SHARES)
    retime: bool = False


def cases(seeds: Sequence[int], shares: Sequence[float] = tuple(SHARES)) -> list[Case]:
    """The smallest share and the strengths of every seed come first: comparable whenever it ends."""
    (share, names), *others = sorted((share, SHARES[share]) for share in shares)
    strengths = [(f"demp {cost}", strength) for cost, all_ in STRENGTHS.items() for strength in all_]
    first = [("dense", 1.0), *((name, share) for name in names), *strengths]
    rest = [(name, share) for share, names in others for name in names]
    return [(method, amount, seed) for part in (first, rest) for seed in seeds for method, amount in part]


def trained_by(case: Case, data: Dataset, epochs: int, threads: int, folder: Path) -> nn.Module:
    """The final network of a case, compact, in eval mode."""
    method, amount, seed = case
    shared: dict[str, Any] = {"epochs": epochs, "batch_size": 128, "lr": 0.1, "augment": "crop_flip", **FAST}
    shared |= {"momentum": peers.MOMENTUM, "weight_decay": peers.DECAY / (1 - peers.MOMENTUM)}
    if method in ("slimming", "group norm"):
        torch.set_num_threads(threads)
        torch.manual_seed(derived_seed(seed, "init"))
        network = build(model_of(WIDTH), num_classes=len(data.names), input_shape=data.input_shape)
        return peers.pruned(network, method, amount, seed, data, shared)
    width = narrow_width(amount, data) if method == "narrow" else WIDTH
    model = model_of(width)
    task = Task(model, data, seed, threads, "cpu", folder, Silent())
    if method in ("dense", "narrow"):
        return trained_network(model, data, train_dense(config.Training(**shared), task))
    _, cost, *aligned = method.split()
    if method.startswith("steered"):
        asked: dict[str, Any] = {"target": config.Target(macs=amount)}
    else:
        asked = {"lambda_peak": amount}
    section = config.Demp.model_validate({**shared, "cost": cost, **asked})
    return trained_network(model, data, train_demp(section, task, align=ALIGNED if aligned else 1))


def model_of(width: int) -> config.Model:
    return config.Model(name=MODEL, args={"width": width, "blocks": BLOCKS})


def narrow_width(share: float, data: Dataset) -> int:
    """The width whose network has the share of MACs that is nearest to the one asked for."""

    def of(width: int) -> int:
        return macs(build(model_of(width), num_classes=len(data.names), input_shape=data.input_shape), data.input_shape)

    whole = of(WIDTH)
    return min(range(2, WIDTH), key=lambda width: abs(of(width) / whole - share))


@functools.cache
def data_of(given: Given) -> Dataset:
    return real_data.dataset(given.name, given.data, given.side)


def trained(case: Case, given: Given) -> Point:
    """One run in a process of its own: accuracy on the whole test split, MACs, time; leaves the network as ONNX."""
    torch.set_num_threads(1)
    data, start = data_of(given), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        network = trained_by(case, data, given.epochs, 1, Path(folder))
    seconds = time.perf_counter() - start
    dense = build(model_of(WIDTH), num_classes=len(data.names), input_shape=data.input_shape)
    count, (method, amount, seed) = macs(network, data.input_shape), case
    point = {
        "method": method, "amount": amount, "asked": asked(case), "seed": seed, "epochs": given.epochs,
        "accuracy_pct": 100 * accuracy_of(network, data.test), "macs": count,
        "macs_pct": 100 * count / macs(dense, data.input_shape),
        "params": sum(p.numel() for p in network.parameters()), "training_s": seconds,
    }  # fmt: skip
    path, example = given.work / graph_name(point), torch.zeros(2, *data.input_shape)
    onnx_from_torch(network.eval(), example, path, opset=OPSET, max_abs_diff=math.inf, metadata={})
    return point


def asked(case: Case) -> str:
    """What a case was told to do, in words."""
    method, amount, _ = case
    if method == "dense":
        return ""
    return f"lambda {amount:g}" if method.startswith("demp") else f"{100 * amount:g} % of the MACs"


def graph_name(point: Point) -> str:
    return f"{point['method']}-{point['amount']}-{point['seed']}.onnx".replace(" ", "-")


def timed(points: Sequence[Point], given: Given) -> list[Point]:
    """The points with their latency beside that of the dense network of their seed; those without one as they are.

    All comparisons go on in turn, opening by opening, so that each is spread over the time of all.
    """
    dense = {p["seed"]: given.work / graph_name(p) for p in points if p["method"] == "dense"}
    seen = in_turn([
        against(dense[p["seed"]], given.work / graph_name(p), given) for p in points if p["seed"] in dense
    ])  # fmt: skip
    figures = iter(seen)
    return [p | figures_of(next(figures)) if p["seed"] in dense else p for p in points]


def against(dense: Path, own: Path, given: Given) -> Running:
    openers = [functools.partial(open_session, path, device="cpu", threads=1) for path in (dense, own)]
    shape = (BATCH, *data_of(given).input_shape)
    feed = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    names = [onnx.load(path, load_external_data=False).graph.input[0].name for path in (dense, own)]
    return Running(openers, [{name: feed} for name in names], time_limit_s=TIMED_S, precision=PRECISION)


def figures_of(seen: Comparison) -> Point:
    (speedup,), own = seen.speedups, seen.models[1]
    return {"batch_32_p50_ms": own.p50_ms, "speedup": speedup.ratio, "speedup_low": speedup.ci95[0],
            "speedup_high": speedup.ci95[1], "others_busy_pct": seen.conditions["others_busy_pct"]}  # fmt: skip


def document(given: Given, points: Sequence[Point]) -> dict[str, Any]:
    seeds = " ".join(str(seed) for seed in sorted({p["seed"] for p in points}))
    options = f"--set {given.name} --side {given.side} --epochs {given.epochs} --seeds {seeds}"
    made = sorted({p["amount"] for p in points} & set(SHARES))
    options += f" --shares {' '.join(map(str, made))}" if made != sorted(SHARES) else ""
    options += " --retime" if given.retime else ""
    return {
        "schema": 1,
        "command": f"python -m benchmarks.methods --out benchmarks/results/{given.out.name} {options}",
        "data": f"{given.name}, averaged down to {given.side}x{given.side}; {given.epochs} epochs",
        "environment": environment(), "n": len(points), "points": list(points),
    }  # fmt: skip


def arguments_of(arguments: Sequence[str] | None) -> Given:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results file; added to where it exists")
    parser.add_argument("--work", type=Path, help="folder for the final networks; build/methods/SET")
    parser.add_argument("--data", type=Path, default=real_data.DEFAULT, help="folder of the data sets")
    parser.add_argument("--set", dest="name", default="cifar10", help="cifar10 or fashion_mnist")
    parser.add_argument("--side", type=int, default=16, help="images are averaged down to this many pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--shares", type=float, nargs="+", choices=SHARES, default=list(SHARES), help="of the MACs")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--limit-s", type=float, default=math.inf)
    parser.add_argument("--retime", action="store_true", help="time all final networks again")
    told = vars(parser.parse_args(arguments))
    work = told["work"] or Path("build/methods") / told["name"]
    return Given(**{**told, "work": work, "seeds": tuple(told["seeds"]), "shares": tuple(told["shares"])})


def main(arguments: Sequence[str] | None = None) -> int:
    given = arguments_of(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    points: list[Point] = json.loads(given.out.read_text("utf-8"))["points"] if given.out.is_file() else []
    there = {(p["method"], p["amount"], p["seed"]) for p in points}
    missing = [case for case in cases(given.seeds, given.shares) if case not in there]
    end = time.monotonic() + given.limit_s
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
        for point in pool.map(functools.partial(unless_late, given, end), missing):
            if point is None:
                continue
            points.append(point)
            write_json(given.out, document(given, points))
            figures = (
                f"{point['accuracy_pct']:.2f} %, {point['macs_pct']:.1f} % of the MACs, {point['training_s']:.0f} s"
            )
            print(f"{point['method']} {point['amount']:g} seed {point['seed']}: {figures}", file=sys.stderr)
    if len(points) < len(there) + len(missing):
        return EXIT_INCONCLUSIVE
    if given.retime or not all("speedup" in p for p in points):
        write_json(given.out, document(given, timed(points, given)))
    return EXIT_PASS


def unless_late(given: Given, end: float, case: Case) -> Point | None:
    return trained(case, given) if time.monotonic() < end else None


if __name__ == "__main__":
    sys.exit(main())
