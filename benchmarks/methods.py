"""DemP beside what users have: the same data, the same training budget, MACs and latency of the final networks.

    python -m benchmarks.methods --out benchmarks/results/methods.cpu.json

Each run is one method, one share of MACs and one seed: `dense`; `narrow`, a dense network built small from the start;
`demp plain` and `demp macs`, the penalty at several strengths; `steered` to the share, by importance per channel, per
MACs and per latency, and `aligned` to widths that are multiples of 8; `slimming` and `group norm`, torch-pruning's
BN-scale and group-norm pruners, sparse training for half of the budget, then pruned, then fine-tuned. All take the
same number of steps, computed in bf16. OTO (only_train_once 3.0.1) cannot be imported beside torch 2.15 and is left
out. Runs that the file has already are not made again; `--limit-s` begins no run after so many seconds (exit 3). What
measures latency while it trains runs alone. When all runs are there, and one of them lacks its latency, all final
networks are timed, each in turn with the dense one of its seed, over many openings (runtime/openings.py): ONNX Runtime,
one thread of the CPU, batch 32.

On a GPU, the published comparison (each command within ten minutes with --limit-s 540, and gone on with by the next):

    python -m benchmarks.methods --out benchmarks/results/methods_cifar10.gpu.json --side 32 --model cifar:resnet18 \\
        --width 64 --epochs 100 --device cuda --compile --shares 0.2 --limit-s 540
    (the same with --optimizer adamw; --set tiny_imagenet100 --side 64, and with --model cifar:resnet50)
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks import real_data
from benchmarks.contenders import Case, Recipe, trained_by
from export.files import write_json
from export.onnx_from_torch import onnx_from_torch
from pipeline.data import Dataset
from pipeline.training.loop import accuracy_of
from pipeline.training.repeatable import torch_device
from runtime.backend import open_session
from runtime.device import environment
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_USAGE, UserError
from runtime.latency import Comparison
from runtime.macs import macs
from runtime.openings import Running, in_turn

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
STRENGTHS = {"plain": (0.003, 0.01), "macs": (0.01,)}
BATCH, OPSET = 32, 18
TIMED_S, PRECISION = 20.0, 0.01  # of a comparison's own openings; half-width of its interval
MACHINE = ("cpu", "cores", "gpus")
Point = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """The command line."""

    out: Path
    work: Path
    data: Path
    name: str = "cifar10"
    side: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 2
    limit_s: float = math.inf
    shares: tuple[float, ...] = tuple(SHARES)
    retime: bool = False
    recipe: Recipe = field(default_factory=Recipe)


def cases(seeds: Sequence[int], shares: Sequence[float] = tuple(SHARES)) -> list[Case]:
    """The smallest share and the strengths of every seed come first: comparable whenever it ends."""
    (share, names), *others = sorted((share, SHARES[share]) for share in shares)
    strengths = [(f"demp {cost}", strength) for cost, all_ in STRENGTHS.items() for strength in all_]
    first = [("dense", 1.0), *((name, share) for name in names), *strengths]
    rest = [(name, share) for share, names in others for name in names]
    return [(method, amount, seed) for part in (first, rest) for seed in seeds for method, amount in part]


def alone(case: Case) -> bool:
    """Whether nothing else may run beside it: it times networks while it trains."""
    return "latency" in case[0]


@functools.cache
def data_of(given: Given) -> Dataset:
    return real_data.dataset(given.name, given.data, given.side)


def trained(case: Case, given: Given) -> Point:
    """One run in a process of its own: accuracy on the whole test split, MACs, time; leaves the network as ONNX."""
    torch.set_num_threads(1)
    data, recipe, start = data_of(given), given.recipe, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        network = trained_by(case, recipe, data, 1, Path(folder))
    seconds = time.perf_counter() - start
    dense = recipe.built(recipe.width, data)
    count, (method, amount, seed) = macs(network, data.input_shape), case
    device = torch_device(recipe.device)
    accuracy = accuracy_of(network.to(device), data.test.to(device))
    point = {
        "method": method, "amount": amount, "asked": asked(case), "seed": seed, "epochs": recipe.epochs,
        "accuracy_pct": 100 * accuracy, "macs": count, "macs_pct": 100 * count / macs(dense, data.input_shape),
        "params": sum(p.numel() for p in network.parameters()), "training_s": seconds,
    }  # fmt: skip
    path, example = given.work / graph_name(point), torch.zeros(2, *data.input_shape)
    onnx_from_torch(network.cpu().eval(), example, path, opset=OPSET, max_abs_diff=math.inf, metadata={})
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


def options(given: Given, points: Sequence[Point]) -> str:
    """The command line that makes these points: what decides the figures, and what is not as it is by default."""
    recipe, plain = given.recipe, Recipe()
    seeds = " ".join(str(seed) for seed in sorted({p["seed"] for p in points}))
    told = f"--set {given.name} --side {given.side} --epochs {recipe.epochs} --seeds {seeds}"
    for key in ("model", "width", "optimizer", "batch", "amp", "device"):
        if (value := getattr(recipe, key)) != getattr(plain, key):
            told += f" --{key} {value}"
    made = sorted({p["amount"] for p in points} & set(SHARES))
    told += f" --shares {' '.join(map(str, made))}" if made != sorted(SHARES) else ""
    told += f" --workers {given.workers}" if given.workers != Given.workers else ""
    return told + " --compile" * recipe.compile + " --retime" * given.retime


def document(given: Given, points: Sequence[Point], seconds: float) -> dict[str, Any]:
    """`seconds`: what all commands took that made it."""
    return {
        "schema": 1,
        "command": f"python -m benchmarks.methods --out benchmarks/results/{given.out.name} {options(given, points)}",
        "data": f"{given.name}, averaged down to {given.side}x{given.side}; {given.recipe.epochs} epochs",
        "recipe": made_with(given), "environment": environment(), "seconds": seconds, "n": len(points),
        "points": list(points),
    }  # fmt: skip


def made_with(given: Given) -> dict[str, Any]:
    """What all runs of a file have in common."""
    return {"set": given.name, "side": given.side, **dataclasses.asdict(given.recipe)}


def before(given: Given) -> tuple[list[Point], float]:
    """Points and seconds of a file that is gone on with. UserError where it was made otherwise, or elsewhere."""
    if not given.out.is_file():
        return [], 0.0
    told, machine = json.loads(given.out.read_text("utf-8")), environment()
    if told.get("recipe") != made_with(given) or any(told["environment"][key] != machine[key] for key in MACHINE):
        raise UserError(f"{given.out} was measured otherwise", "the same options and machine", "name another --out")
    return told["points"], told["seconds"]


def arguments_of(arguments: Sequence[str] | None) -> Given:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="results file; added to where it exists")
    add("--work", type=Path, help="folder for the final networks; build/methods/OUT")
    add("--data", type=Path, default=real_data.DEFAULT, help="folder of the data sets")
    add("--set", dest="name", default=Given.name, help="cifar10, fashion_mnist or tiny_imagenet100")
    add("--side", type=int, default=Given.side, help="images are averaged down to this many pixels")
    add("--seeds", type=int, nargs="+", default=list(Given.seeds))
    add("--shares", type=float, nargs="+", choices=SHARES, default=list(SHARES), help="of the MACs")
    add("--workers", type=int, default=Given.workers, help="runs at once, one thread each")
    add("--limit-s", type=float, default=math.inf)
    add("--retime", action="store_true", help="time all final networks again")
    for key in dataclasses.fields(Recipe):
        if key.name == "compile":
            add("--compile", action="store_true", help="torch.compile, anew after each removal")
        else:
            add(f"--{key.name}", type=type(key.default), default=key.default)
    told = vars(parser.parse_args(arguments))
    recipe = Recipe(**{key.name: told.pop(key.name) for key in dataclasses.fields(Recipe)})
    work = told["work"] or Path("build/methods") / told["out"].stem
    lists = {"seeds": tuple(told["seeds"]), "shares": tuple(told["shares"])}
    return Given(**{**told, **lists, "work": work}, recipe=recipe)


def runs(given: Given, missing: Sequence[Case]) -> Iterator[Point]:
    """As they end, those that run alone last; none begins after `limit_s`."""
    end = time.monotonic() + given.limit_s
    for workers, lonely in ((given.workers, False), (1, True)):
        mine = [case for case in missing if alone(case) == lonely]
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            made = pool.map(functools.partial(unless_late, given, end), mine)
            yield from (point for point in made if point is not None)


def unless_late(given: Given, end: float, case: Case) -> Point | None:
    return trained(case, given) if time.monotonic() < end else None


def measured(given: Given) -> int:
    """The whole comparison, as far as its time goes: the exit code. Raises UserError."""
    start = time.monotonic()
    points, spent = before(given)
    torch_device(given.recipe.device)
    given.work.mkdir(parents=True, exist_ok=True)
    there = {(p["method"], p["amount"], p["seed"]) for p in points}
    missing = [case for case in cases(given.seeds, given.shares) if case not in there]
    for point in runs(given, missing):
        points.append(point)
        write_json(given.out, document(given, points, spent + time.monotonic() - start))
        figures = f"{point['accuracy_pct']:.2f} %, {point['macs_pct']:.1f} % of the MACs, {point['training_s']:.0f} s"
        print(f"{point['method']} {point['amount']:g} seed {point['seed']}: {figures}", file=sys.stderr)
    if len(points) < len(there) + len(missing):
        return EXIT_INCONCLUSIVE
    if given.retime or not all("speedup" in p for p in points):
        points = timed(points, given)
        write_json(given.out, document(given, points, spent + time.monotonic() - start))
    return EXIT_PASS


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return measured(arguments_of(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
