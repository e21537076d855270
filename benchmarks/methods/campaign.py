"""Methods beside each other: the same data, the same training budget, MACs, size and latency of the final networks.

    python -m benchmarks.methods --out benchmarks/results/methods.cpu.json
    python -m benchmarks.methods --out benchmarks/results/methods_every.cpu.json --every --images 5000 --epochs 6 \\
        --width 8 --batch 64 --workers 1 --timed-s 3 --backends onnxruntime openvino

Each run is one method, one amount and one seed. Long runs: `dense`; `narrow`, a dense network built small from the
start; `demp plain` and `demp macs`, the penalty at several strengths; `steered` to the share, by importance per
channel, per MACs and per latency, and `aligned` to widths that are multiples of 8; `slimming` and `group norm`,
torch-pruning's BN-scale and group-norm pruners, sparse training for half of the budget, then pruned, then fine-tuned.
With `--every`: each method that `sparse: {method: ...}` takes, see every_method.py. All take the same number of
steps, computed in bf16. OTO (only_train_once 3.0.1) cannot be imported beside torch 2.15 and is left out. Runs that
the file has already are not made again; `--limit-s` begins no run after so many seconds (exit 3). What measures latency
while it trains runs alone. When all runs are there, and one of them lacks its latency, all final networks are timed,
each in turn with its dense one, over many openings (runtime.measure): one thread of the CPU, batch 32. Networks of the
same layers and widths are timed once.

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
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import real_data
from benchmarks.methods import contenders, every_method
from benchmarks.methods.contenders import SHARES, Case, Recipe
from benchmarks.methods.final_latency import BACKENDS, graph_name, timed
from benchmarks.results import Point
from export.onnx.from_torch import onnx_from_torch
from export.onnx.weights import weights_of
from pipeline.data import Dataset
from pipeline.training.compute.device import torch_device
from pipeline.training.loop import metric_of
from runtime.device import environment
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_USAGE, UserError
from runtime.files import write_json
from runtime.macs import macs

BATCH, OPSET = 32, 18
MACHINE = ("cpu", "cores", "gpus")


@dataclass(frozen=True)
class Campaign:
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
    every: bool = False
    only: tuple[str, ...] = ()
    densities: tuple[float, ...] = every_method.DENSITIES
    images: int | None = None
    timed_s: float = 20.0
    timing: bool = True
    backends: tuple[str, ...] = ("onnxruntime",)
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def cases(self) -> list[Case]:
        if not self.every:
            return contenders.cases(self.seeds, self.shares)
        listed = every_method.cases(self.seeds, self.densities)
        return [case for case in listed if not self.only or case[0] in self.only]


def alone(case: Case) -> bool:
    """Whether nothing else may run beside it: it times networks while it trains."""
    return "latency" in case[0]


@functools.cache
def data_of(settings: Campaign) -> Dataset:
    return real_data.dataset(settings.name, settings.data, settings.side, settings.images)


def trained(case: Case, settings: Campaign) -> Point:
    """One run in a process of its own: accuracy on the whole test split, MACs, time; leaves the network as ONNX. Of a
    method that refuses its reason."""
    torch.set_num_threads(1)
    data, recipe, start = data_of(settings), settings.recipe, time.perf_counter()
    field, (method, amount, seed) = every_method if settings.every else contenders, case
    kind = {"kind": every_method.kind(method)} if settings.every else {}
    point = {**kind, "method": method, "amount": amount, "asked": field.asked(case), "seed": seed}
    try:
        trainee = field.trained_by(case, recipe, data, 1)
    except UserError as error:
        return {**point, "refused": str(error)}
    network, dense, device = trainee.network, recipe.built(recipe.width, data), torch_device(recipe.device)
    seconds, count = time.perf_counter() - start, macs(network, data.input_shape)
    accuracy = metric_of(network.to(device), data.test.to(device))
    point |= {
        "epochs": recipe.epochs, "accuracy_pct": 100 * accuracy, "macs": count,
        "macs_pct": 100 * count / macs(dense, data.input_shape),
        "params": sum(p.numel() for p in network.parameters()), **trainee.figures, "training_s": seconds,
    }  # fmt: skip
    path, example = settings.work / graph_name(point), torch.zeros(2, *data.input_shape)
    onnx_from_torch(network.cpu().eval(), example, path, opset=OPSET, max_abs_diff=math.inf, metadata={})
    return point | (size_of(path, example) if settings.every else {})


def size_of(path: Path, example: torch.Tensor) -> Point:
    """Of an ONNX file as it is, and where that is smaller with its zeros left out."""
    weights = weights_of(path, path.with_suffix(".sparse.onnx"), example.numpy())
    return {"onnx_kib": weights.bytes / 1024, "smallest_kib": (weights.sparse_bytes or weights.bytes) / 1024}


def options(settings: Campaign, points: Sequence[Point]) -> str:
    """The command line that makes these points: what decides the figures, and what is not as it is by default."""
    recipe, plain = settings.recipe, Recipe()
    seeds = " ".join(str(seed) for seed in sorted({p["seed"] for p in points}))
    line = f"--set {settings.name} --side {settings.side} --epochs {recipe.epochs} --seeds {seeds}"
    for key in ("model", "width", "optimizer", "batch", "amp", "device"):
        if (value := getattr(recipe, key)) != getattr(plain, key):
            line += f" --{key} {value}"
    shares = sorted({p["amount"] for p in points} & set(SHARES))
    line += f" --shares {' '.join(map(str, shares))}" if shares != sorted(SHARES) and not settings.every else ""
    for key in ("every", "images", "only", "densities", "workers", "timed_s", "backends"):
        if (value := getattr(settings, key)) != getattr(Campaign, key):
            texts = [f"'{one}'" if " " in str(one) else f"{one}" for one in value] if isinstance(value, tuple) else []
            line += f" --{key.replace('_', '-')} {' '.join(texts) or ('' if value is True else f'{value:g}')}".rstrip()
    return line + " --compile" * recipe.compile + " --retime" * settings.retime


def document(settings: Campaign, points: Sequence[Point], seconds: float) -> dict[str, Any]:
    """`seconds`: what all commands took that made it."""
    return {
        "schema": 1,
        "command": f"python -m benchmarks.methods --out benchmarks/results/{settings.out.name} "
        + options(settings, points),
        "data": f"{settings.name}, averaged down to {settings.side}x{settings.side}"
        + (f", the first {settings.images:,} images" if settings.images else "")
        + f"; {settings.recipe.epochs} epochs",
        "recipe": made_with(settings), "environment": environment(), "seconds": seconds, "n": len(points),
        "points": list(points),
    }  # fmt: skip


def made_with(settings: Campaign) -> dict[str, Any]:
    """What all runs of a file have in common."""
    images = {"images": settings.images} if settings.images else {}
    return {"set": settings.name, "side": settings.side, **images, **dataclasses.asdict(settings.recipe)}


def before(settings: Campaign) -> tuple[list[Point], float]:
    """Points and seconds of a file that is gone on with. UserError where it was made otherwise, or elsewhere."""
    if not settings.out.is_file():
        return [], 0.0
    document, machine = json.loads(settings.out.read_text("utf-8")), environment()
    if document.get("recipe") != made_with(settings) or any(
        document["environment"][key] != machine[key] for key in MACHINE
    ):
        raise UserError(f"{settings.out} was measured otherwise", "the same options and machine", "name another --out")
    return document["points"], document["seconds"]


def arguments_of(arguments: Sequence[str] | None) -> Campaign:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="results file; added to where it exists")
    add("--work", type=Path, help="folder for the final networks; build/methods/OUT")
    add("--data", type=Path, default=real_data.DEFAULT, help="folder of the data sets")
    add("--set", dest="name", default=Campaign.name, help="cifar10, fashion_mnist or tiny_imagenet100")
    add("--side", type=int, default=Campaign.side, help="images are averaged down to this many pixels")
    add("--seeds", type=int, nargs="+", default=list(Campaign.seeds))
    add("--shares", type=float, nargs="+", choices=SHARES, default=list(SHARES), help="of the MACs")
    add("--workers", type=int, default=Campaign.workers, help="runs at once, one thread each")
    add("--limit-s", type=float, default=math.inf)
    add("--retime", action="store_true", help="time all final networks again")
    add("--every", action="store_true", help="every method of `sparse`, in the place of the long runs")
    add("--only", nargs="+", default=(), help="with --every: these alone, e.g. dense rigl 'low resolution'")
    add("--densities", type=float, nargs="+", default=Campaign.densities, help="with --every: of weight methods")
    add("--images", type=int, help="the first of the training split")
    add("--no-timing", dest="timing", action="store_false", help="leave latency to a later command")
    add("--timed-s", type=float, default=Campaign.timed_s, help="seconds of each comparison of latency")
    add("--backends", nargs="+", choices=BACKENDS, default=Campaign.backends, help="what measures latency")
    for key in dataclasses.fields(Recipe):
        if key.name == "compile":
            add("--compile", action="store_true", help="torch.compile, anew after each removal")
        else:
            add(f"--{key.name}", type=type(key.default), default=key.default)
    values = vars(parser.parse_args(arguments))
    recipe = Recipe(**{key.name: values.pop(key.name) for key in dataclasses.fields(Recipe)})
    work = values["work"] or Path("build/methods") / values["out"].stem
    lists = {key: tuple(values[key]) for key in ("seeds", "shares", "only", "densities", "backends")}
    return Campaign(**{**values, **lists, "work": work}, recipe=recipe)


def runs(settings: Campaign, missing: Sequence[Case]) -> Iterator[Point]:
    """As they end, those that run alone last; none begins after `limit_s`."""
    end = time.monotonic() + settings.limit_s
    for workers, lonely in ((settings.workers, False), (1, True)):
        mine = [case for case in missing if alone(case) == lonely]
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            points = pool.map(functools.partial(unless_late, settings, end), mine)
            yield from (point for point in points if point is not None)


def unless_late(settings: Campaign, end: float, case: Case) -> Point | None:
    return trained(case, settings) if time.monotonic() < end else None


def measured(settings: Campaign) -> int:
    """The whole comparison, as far as its time goes: the exit code. Raises UserError."""
    start = time.monotonic()
    points, spent = before(settings)
    torch_device(settings.recipe.device)
    settings.work.mkdir(parents=True, exist_ok=True)
    there = {(p["method"], p["amount"], p["seed"]) for p in points}
    missing = [case for case in settings.cases if case not in there]
    for point in runs(settings, missing):
        points.append(point)
        write_json(settings.out, document(settings, points, spent + time.monotonic() - start))
        print(f"{point['method']} {point['amount']:g} seed {point['seed']}: {in_words(point)}", file=sys.stderr)
    if len(points) < len(there) + len(missing):
        return EXIT_INCONCLUSIVE
    if settings.timing and (settings.retime or not all("speedup" in p or "refused" in p for p in points)):
        shape = (BATCH, *data_of(settings).input_shape)
        points = timed(points, settings.work, shape, settings.backends, settings.timed_s)
        write_json(settings.out, document(settings, points, spent + time.monotonic() - start))
    return EXIT_PASS


def in_words(point: Point) -> str:
    if "refused" in point:
        return str(point["refused"])
    return f"{point['accuracy_pct']:.2f} %, {point['macs_pct']:.1f} % of the MACs, {point['training_s']:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return measured(arguments_of(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
