"""Train, prune, train again: Han, lottery tickets and NNrelief on MNIST, the schedules of IMP on ResNet-20."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.published.trainings import LENET, LENET5, Budget, Outcome, decay, ended, images, rows_of, trained
from benchmarks.results import Point
from pipeline import config
from pipeline.progress import Silent
from pipeline.training.train import Setting, trained_network

SCHEDULES = ("allr", "llr", "clr", "slr", "lrw", "ft")
IMAGES, SIDE = 12_800, 16


def han(seed: int, budget: Budget) -> list[Point]:
    """LeNet-300-100 to about a twelfth of its weights; the last layer keeps more."""
    return thinned(seed, budget, LENET, "LeNet-300-100", {"5": 0.6}, "1.59 %, 8.2 %", 20)


def han_lenet5(seed: int, budget: Budget) -> list[Point]:
    """LeNet-5 likewise; the first convolution keeps more too."""
    return thinned(seed, budget, LENET5, "LeNet-5", {"0": 0.25, "9": 0.6}, "0.77 %, 8.4 %", 4)


def thinned(
    seed: int, budget: Budget, model: config.Model, run: str, spared: dict[str, float], published: str, epochs: int
) -> list[Point]:
    keys = {
        "epochs": budget.epochs(epochs), "batch_size": 100, "lr": 0.1, "weight_decay": decay(1e-4), "rounds": 3,
        "retrain_epochs": budget.epochs(epochs // 2), "quality": 0.85, "layers": spared,
    }  # fmt: skip
    outcome = trained("han", model, images("mnist", budget.data), seed, keys)
    dense = [row for row in outcome.rows if row["round"] == 0][-1]
    return [{"run": run, "published": published, **outcome.figures(), "dense_error_pct": 100 * (1 - dense["accuracy"])}]


def lottery_ticket(seed: int, budget: Budget) -> list[Point]:
    """LeNet-300-100 from the first weights, layer by layer, and the last round with weights drawn anew."""
    data, epochs = images("mnist", budget.data), budget.epochs(8)
    keys = {
        "epochs": epochs, "batch_size": 100, "lr": 1.2e-3, "optimizer": "adamw", "weight_decay": 0.0,
        "schedule": "constant", "layerwise": True,
    }  # fmt: skip
    ticket = trained("lottery_ticket", LENET, data, seed, keys | {"rounds": 15})
    points = [
        {"run": f"ticket, round {number}", "published": text, "epochs": epochs, **end_of_round(ticket, number)}
        for number, text in ((0, "dense"), (7, "below dense"), (12, "below dense"), (15, "dense level"))
    ]
    other = trained("lottery_ticket", LENET, data, seed, keys | {"rounds": 7, "control": "reinit"})
    again = {"run": "reinit, round 7", "published": "above the ticket", "epochs": epochs}
    return [*points, again | end_of_round(other, 7)]


def end_of_round(outcome: Outcome, number: int) -> Point:
    last = [row for row in outcome.rows if row["round"] == number][-1]
    return {"error_pct": 100 * (1 - last["accuracy"]), "density_pct": 100 * last["density"]}


def nnrelief(seed: int, budget: Budget) -> list[Point]:
    """LeNet-300-100, Adam, 20 rounds from the first weights; the loss against dense in points."""
    data, epochs = images("mnist", budget.data), budget.epochs(10)
    keys = {
        "epochs": epochs, "batch_size": 120, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.01, "rounds": 20,
        "retrain_epochs": epochs, "schedule": "milestones", "step_factor": 0.1, "milestones": (max(1, epochs // 2),),
        "reset": True, "alpha_conv": 0.9, "alpha_linear": 0.95,
    }  # fmt: skip
    outcome = trained("nnrelief", LENET, data, seed, keys)
    return [
        {
            "run": f"round {number}",
            "published": "within 0.3 of dense",
            "epochs": epochs,
            **end_of_round(outcome, number),
        }
        for number in (0, 5, 10, 15, 20)
    ]


class Stop(Silent):
    """Ends a training after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def update(self, done: float, text: str = "") -> None:
        if done >= self.steps:
            raise KeyboardInterrupt


def imp(seed: int, budget: Budget) -> list[Point]:
    """ResNet-20 of width 8, CIFAR-10 at 16x16, to 5 % of the weights in one round; all go on from the checkpoint
    of one dense training."""
    data, epochs = images("cifar10", budget.data, SIDE, IMAGES), budget.epochs(20)
    model, more = config.Model(name="cifar:resnet20", args={"width": 8}), max(1, round(0.1 * epochs))
    keys: dict[str, Any] = {
        "epochs": epochs, "batch_size": 128, "lr": 0.1, "weight_decay": decay(5e-4), "schedule": "milestones",
        "milestones": (round(epochs / 2), round(0.75 * epochs)), "step_factor": 0.1, "augment": "crop_flip",
        "density": 0.05, "rounds": 1, "retrain_epochs": more, "checkpoint_s": 0.0,
    }  # fmt: skip
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        work, steps = Path(folder), epochs * (IMAGES // 128)
        first = Setting(model, data, seed, torch.get_num_threads(), "cpu", work, Stop(steps), work / "dense")
        with contextlib.suppress(KeyboardInterrupt):
            ended("imp", first, {**keys, "retrain": "ft"})
        for schedule in SCHEDULES:
            shutil.copytree(work / "dense", work / schedule)
            own = Setting(model, data, seed, first.threads, "cpu", work, Silent(), work / schedule)
            result = ended("imp", own, {**keys, "retrain": schedule})
            outcome = Outcome(trained_network(model, data, result), rows_of(result), result.epochs)
            before = 100 * (1 - outcome.rows[epochs - 1]["accuracy"])
            rank = {"run": schedule, "published": "allr best, ft last"}
            points.append({**rank, **outcome.figures(), "dense_error_pct": before, "best_error_pct": None})
    return points
