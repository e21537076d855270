"""Channels on MNIST: widths that variational gates end with, and what i-SpaSP's choice is worth before fine-tuning."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.published.trainings import NETWORKS, Budget, decay, images, trained, widths_of
from benchmarks.results import Point
from pipeline import config


def variational(seed: int, budget: Budget) -> list[Point]:
    """LeNet-300-100 and 600-200, from theta 0.8 and 0.5."""
    data, epochs = images("mnist", budget.data), budget.epochs(30)
    points: list[Point] = []
    for widths in ([300, 100], [600, 200]):
        for theta in (0.8, 0.5):
            keys: dict[str, Any] = {
                "epochs": epochs, "batch_size": 100, "lr": 0.1, "weight_decay": 0.0, "theta": theta, "cost": 1e-3,
                "pace": 500.0,
            }  # fmt: skip
            model = config.Model(name=f"{NETWORKS}:mlp", args={"widths": widths})
            outcome = trained("variational", model, data, seed, keys)
            run = f"from {'-'.join(map(str, widths))}, theta {theta:g}"
            widths_after = widths_of(outcome.network, data)
            more = {"widths": "-".join(map(str, widths_after)), "first": widths_after[0], "second": widths_after[1]}
            points.append({"run": run, "published": "the same widths, at most 1.6 %", **outcome.figures(), **more})
    return points


def ispasp(seed: int, budget: Budget) -> list[Point]:
    """784-1000-10 cut to 40 % of its units, not trained further: i-SpaSP, the norm of the weights, and chance."""
    data, epochs = images("mnist", budget.data), budget.epochs(10)
    model = config.Model(name=f"{NETWORKS}:mlp", args={"widths": [1000]})
    keys: dict[str, Any] = {"epochs": epochs, "batch_size": 100, "lr": 0.05, "weight_decay": decay(1e-4)}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "dense.safetensors"
        dense = trained("dense", model, data, seed, keys, weights)
        points: list[Point] = [{"run": "dense", "published": "", **dense.figures()}]
        as_it_is = model.model_copy(update={"weights": str(weights)})
        still = {**keys, "epochs": 1, "lr": 0.0, "weight_decay": 0.0}
        for method in ("ispasp", "magnitude", "random"):
            outcome = trained(method, as_it_is, data, seed, {**still, "target": {"channels": 0.4}})
            points.append({"run": method, "published": "ispasp best", **outcome.figures()})
    return points
