"""What DemP's own work costs a step, and what removing channels on the way saves.

    python -m benchmarks.training --out benchmarks/results/training.cpu.json
    python -m benchmarks.training --out benchmarks/results/training.gpu.json --device cuda --fast --width 64

`own work`: a plain training and one with penalty and noise take turns on the same images, a step each on a CPU, twenty
on a GPU; their medians are compared with a 95 % interval (runtime.measure). The census is timed apart and counted
once in an epoch of the whole training set, as the quickstart's and the paper's rhythms have it at most. `removals`: a
training of the dense network, and one that is steered to a fifth of its MACs while it trains, both to the end, with the
tests after each epoch and all censuses and removals; the fifth is reached after --reached-at of the training, one
training for each share given. Exit 1 where a promise is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import real_data, results
from benchmarks.results import Point
from pipeline import config
from pipeline.data import Dataset
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.training.compute import compute_of
from pipeline.training.compute.device import torch_device
from pipeline.training.compute.distributed import ALONE
from pipeline.training.hooks import Hooks
from pipeline.training.log.history import History
from pipeline.training.loop import Loop, steps_per_epoch
from pipeline.training.methods.demp import demp
from pipeline.training.train import Setting, train_dense, train_sparse, training_of
from runtime.errors import EXIT_USAGE, UserError
from runtime.measure.statistics import ratio_interval

ALLOWED_PCT = {"cpu": 5.0, "cuda": 3.0}
ALLOWED_RATIO = 0.7
ALLOWED_PARAMS_PCT = 20
TURNS, WARM_UP = 200, 5
"""Of each training, and those of them that do not count."""
STEPS = {"cpu": 1, "cuda": 20}
"""Of a turn: a GPU is waited for after each."""
FAST: dict[str, Any] = {"amp": "bf16", "channels_last": True, "compile": True}
TEST_IMAGES = 1000
"""Of the comparison of whole trainings, which look at them after each epoch."""
ALIGN = 8
"""Channels stay up to this multiple, for which CPUs have kernels."""


def own_work(model: config.Model, data: Dataset, device: torch.device, batch: int, fast: bool = False) -> Point:
    """The share by which penalty, noise and census make a plain step longer."""
    steps, whole = STEPS[device.type], steps_per_epoch(data.train, batch)
    data = dataclasses.replace(data, train=data.train.to(device), test=data.test.to(device))
    few = dataclasses.replace(data, train=first(data.train, steps * batch))
    shared: dict[str, Any] = {"epochs": TURNS, "batch_size": batch, "lr": 0.01, **(FAST if fast else {})}
    plain: Any = config.Training(**shared)
    penalised = config.sparse_of(**shared, lambda_peak=1e-4, prune_every="end")
    setting = Setting(model, few, 0, 1, str(device), Path(), Silent())
    loops = []
    for section, method in ((plain, lambda options, training: Hooks()), (penalised, demp)):
        torch.manual_seed(0)
        compute = compute_of(section, device, ALONE)
        network = compute.placed(build(model, num_classes=len(data.names), input_shape=data.input_shape))
        training = training_of(section, network, data, compute, setting)
        training = dataclasses.replace(training, steps=TURNS * steps, steps_per_epoch=steps)
        loops.append(Loop(section, network, few, method(section, training), training, History(None), Silent(), compute))
    taken = np.empty((2, TURNS))
    for k in range(TURNS):
        for i in (0, 1) if k % 2 == 0 else (1, 0):
            taken[i, k] = timed(lambda i=i, k=k: loops[i]._train_epoch(k), device)
    figures = loops[1].sparsifier.hooks.figures
    census = [timed(lambda k=k: figures(k * steps + steps - 1), device) for k in range(5)]
    counted = taken[:, WARM_UP:, None]
    plain_s = float(np.median(counted[0])) / steps
    census_pct = 100 * statistics.median(census) / (plain_s * whole)
    step_pct, low, high = (100 * (ratio - 1) for ratio in ratio_interval(counted[1], counted[0]))
    return {
        "measured": "own work", "network": network_name(model), "turns": TURNS - WARM_UP, "steps": steps,
        "batch": batch, "fast": fast, "plain_step_ms": 1e3 * plain_s, "penalty_and_noise_pct": step_pct,
        "census_pct": census_pct, "cost_pct": step_pct + census_pct, "cost_low_pct": low + census_pct,
        "cost_high_pct": high + census_pct, "allowed_pct": ALLOWED_PCT[device.type],
    }  # fmt: skip


def network_name(model: config.Model) -> str:
    return model.name + (f", width {model.args['width']}" if "width" in model.args else "")


def first(split: Any, images: int) -> Any:
    """The first images of a split."""
    return dataclasses.replace(split, images=split.images[:images], labels=split.labels[:images])


def timed(work: Any, device: torch.device) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def removals(model: config.Model, data: Dataset, options: argparse.Namespace, batch: int) -> list[Point]:
    """Dense beside steered to 20 % of the weights, by way of the MACs that lead there."""
    shared: dict[str, Any] = {
        "epochs": options.epochs,
        "batch_size": batch,
        "lr": 0.05,
        **(FAST if options.fast else {}),
    }
    points: list[Point] = []
    dense = config.Training(**shared)
    with tempfile.TemporaryDirectory() as folder:
        for reached_at in (None, *options.reached_at):
            out = Path(folder) / str(reached_at)
            out.mkdir()
            task = Setting(model, data, 0, options.threads, options.device, out, Silent())
            start = time.perf_counter()
            if reached_at is None:
                points.append(curve("dense", model, train_dense(dense, task), start))
                continue
            target = config.Target(macs=0.2, reached_at=reached_at)
            steered = config.sparse_of(**shared, target=target, cost=options.cost, census_batch_size=128)
            point = curve("demp", model, train_sparse(steered, task, align=ALIGN), start)
            point |= {"cost": options.cost, "reached_at": reached_at}
            point["time_ratio"] = point["time_s"] / points[0]["time_s"]
            point["params_pct"] = 100 * point["params"] / points[0]["params"]
            points.append(point)
    return points


def curve(name: str, model: config.Model, trained: Trained, start: float) -> Point:
    """The whole training, just ended, and its epochs: images a second against the epoch."""
    seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in trained.history.read_text("utf-8").splitlines()]
    return {
        "measured": "removals", "network": network_name(model), "training": name, "time_s": seconds,
        "epochs": len(rows),
        "params": rows[-1]["params"], "macs": rows[-1]["macs"], "accuracy_pct": 100 * trained.accuracy,
        "curve": [{"epoch": r["epoch"], "images_per_s": r["images_per_s"], "macs": r["macs"]} for r in rows],
        "removals": [r for row in rows for r in row["removals"]],
    }  # fmt: skip


def missed(points: Sequence[Point]) -> list[str]:
    """Promises that these points break."""
    failures = []
    for p in points:
        if p["measured"] == "own work" and p["cost_pct"] > p["allowed_pct"]:
            failures.append(f"{p['network']}: DemP's own work takes {p['cost_pct']:.1f} %, over {p['allowed_pct']:g}")
        if p.get("time_ratio", 0) > ALLOWED_RATIO:
            failures.append(f"{which(p)}: {p['time_ratio']:.2f} of the time of dense, over {ALLOWED_RATIO}")
        if p.get("params_pct", 0) > ALLOWED_PARAMS_PCT:
            failures.append(f"{which(p)}: ends at {p['params_pct']:.1f} % of the weights, over {ALLOWED_PARAMS_PCT}")
    return failures


def which(point: Point) -> str:
    return f"{point['network']}, cost {point['cost']}, reached at {point['reached_at']:g}"


def parser_of() -> argparse.ArgumentParser:
    parser = results.parser("training", __doc__)
    add = parser.add_argument
    add("--data", type=Path, default=real_data.DEFAULT, help="folder of the data sets")
    add("--threads", type=int, default=2)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--fast", action="store_true", help="bf16, channels last, compiled")
    add("--images", type=int, default=12800, help="training images of the comparison of whole trainings")
    add("--epochs", type=int, default=12, help="of the comparison of whole trainings")
    add("--width", type=int, default=16, help="of the ResNet-18; the paper's is 64")
    add("--cost", choices=("plain", "macs", "latency"), default="plain", help="of a channel, steered")
    add("--reached-at", type=float, nargs="+", default=[0.4], help="share of the training")
    add("--only", choices=("own work", "removals"), help="measure one of the two alone")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = (parser := parser_of()).parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        device = torch_device(options.device)
        data = real_data.dataset("cifar10", options.data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    few = dataclasses.replace(data, train=first(data.train, options.images), test=first(data.test, TEST_IMAGES))
    points: list[Point] = []
    model = config.Model(name="cifar:resnet18", args={"width": options.width})
    if options.only != "removals":
        points += [
            own_work(one, data, device, 128, options.fast) for one in (config.Model(name="cifar:resnet20"), model)
        ]
    if options.only != "own work":
        points += removals(model, few, options, 128)
    n = 1 if options.only == "removals" else TURNS - WARM_UP
    line = results.command(parser, options, ("data",))
    results.write(options.out, line, points, n, data="CIFAR-10, images stored as JPEG of quality 75")
    return results.judge(missed(points))


if __name__ == "__main__":
    sys.exit(main())
