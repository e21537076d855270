"""Masks on MNIST: RigL, SNIP, SET and CTRE."""

from __future__ import annotations

from typing import Any

from benchmarks.published.trainings import (
    LENET,
    LENET5,
    MOMENTUM,
    NETWORKS,
    Budget,
    Outcome,
    decay,
    images,
    trained,
    widths_of,
)
from benchmarks.results import Point
from pipeline import config
from pipeline.data import Dataset
from pipeline.training.masks import in_scope

RIGL_EPOCHS = 200
WIDE = config.Model(name=f"{NETWORKS}:mlp", args={"widths": [1000, 1000, 1000]})


def rigl(seed: int, budget: Budget) -> list[Point]:
    """LeNet-300-100 at 99, 89 and 0 % zeros; then anew at 96 and 86 % from the units and pixels that were left."""
    data, epochs = images("mnist", budget.data), budget.epochs(RIGL_EPOCHS)
    first = trained("rigl", LENET, data, seed, rigl_keys({"1": 0.01, "3": 0.109, "5": 1.0}, epochs))
    pixels, widths = pixels_of(first), widths_of(first.network, data)
    points = [row("rigl 99/89/0 %", "1.48 %, 408-100-69", first, data)]
    smaller = config.Model(name=f"{NETWORKS}:mlp", args={"pixels": pixels, "widths": widths})
    again = trained("rigl", smaller, data, seed, rigl_keys({"1": 0.04, "3": 0.14, "5": 1.0}, epochs))
    return [*points, row("rigl+ 96/86/0 %", "1.69 %, 375-62-51", again, data)]


def rigl_keys(densities: dict[str, float], epochs: int) -> dict[str, Any]:
    return {
        "epochs": epochs, "batch_size": 100, "lr": 0.2, "momentum": MOMENTUM, "weight_decay": decay(1e-4),
        "schedule": "milestones", "step_factor": 1 / 3, "milestones": (round(0.375 * epochs), round(0.475 * epochs)),
        "densities": densities, "every": 100, "drop": 0.3, "until": 50_000 / 120_000,
    }  # fmt: skip


def pixels_of(outcome: Outcome) -> list[int]:
    """Those that the first layer reads."""
    weight = next(iter(in_scope(outcome.network).values()))
    return [int(n) for n in (weight != 0).any(0).nonzero()]


def row(run: str, published: str, outcome: Outcome, data: Dataset) -> Point:
    """A point of an MLP, with the widths that surgery leaves and the pixels that are read."""
    widths = [len(pixels_of(outcome)), *widths_of(outcome.network, data)]
    return {"run": run, "published": published, **outcome.figures(), "widths": "-".join(map(str, widths))}


def snip(seed: int, budget: Budget) -> list[Point]:
    """LeNet-300-100, dense and at the densities of the paper's table; 10,000 steps of 100 images."""
    return sniped(seed, budget, "LeNet-300-100", LENET, 17, {0.0: "1.7 %", 95.0: "1.6 %", 98.0: "2.4 %"})


def snip_lenet5(seed: int, budget: Budget) -> list[Point]:
    """LeNet-5 likewise, over a quarter of the steps."""
    return sniped(seed, budget, "LeNet-5", LENET5, 4, {0.0: "0.9 %", 98.0: "0.8 %", 99.0: "1.1 %"})


def sniped(
    seed: int, budget: Budget, name: str, model: config.Model, epochs: int, published: dict[float, str]
) -> list[Point]:
    """`published`: zeros in % -> error."""
    data = images("mnist", budget.data)
    keys = {
        "epochs": budget.epochs(epochs), "batch_size": 100, "lr": 0.1, "weight_decay": 5e-4,
        "momentum": 0.0, "schedule": "constant" if epochs > 10 else "one_cycle",
    }  # fmt: skip
    points: list[Point] = []
    for zeros, error in published.items():
        own = {"density": 1 - zeros / 100, "score_batch_size": 100} if zeros else {}
        outcome = trained("snip" if zeros else "dense", model, data, seed, keys | own)
        run = f"{name} snip {zeros:g} %" if zeros else f"{name} dense"
        points.append({"run": run, "published": error, **outcome.figures()})
    return points


def set_(seed: int, budget: Budget) -> list[Point]:
    """784-1000-1000-1000-10: dense, fixed random connections, and connections that move."""
    data, epochs = images("mnist", budget.data), budget.epochs(12)
    keys = {"epochs": epochs, "batch_size": 100, "lr": 0.05, "weight_decay": 0.0, "schedule": "one_cycle"}
    masked = {"density": 90_000 / 2_794_000}
    runs: list[tuple[str, str, dict[str, Any]]] = [
        ("dense", "1.45 %", {}), ("static_erk", "2.32 %", masked), ("set", "1.26 %", masked)
    ]  # fmt: skip
    return [
        {"run": method, "published": published, **trained(method, WIDE, data, seed, keys | own).figures()}
        for method, published, own in runs
    ]


def truly_sparse(seed: int, budget: Budget) -> list[Point]:
    """Fashion-MNIST, 784-1000-1000-1000-10 with eps 20 and dropout: All-ReLU beside ReLU."""
    data, epochs = images("fashion_mnist", budget.data), budget.epochs(10)
    keys = {
        "epochs": epochs, "batch_size": 128, "lr": 0.01, "weight_decay": 0.02, "schedule": "constant",
        "density": 20 * (1784 + 2000 + 2000 + 1010) / 2_794_000,
    }  # fmt: skip
    points: list[Point] = []
    for run, name in (("All-ReLU", "all_relu"), ("ReLU", "relu")):
        model = config.Model(name=f"mlp:{name}", args={"widths": [1000, 1000, 1000], "dropout": 0.3})
        outcome = trained("truly_sparse", model, data, seed, keys)
        points.append({"run": run, "published": "All-ReLU no worse", **outcome.figures()})
    return points


def ctre(seed: int, budget: Budget) -> list[Point]:
    """784-1000-1000-1000-10 with 6,794 connections (eps 1): CTRE beside SET."""
    data, epochs = images("mnist", budget.data), budget.epochs(10)
    keys = {
        "epochs": epochs, "batch_size": 100, "lr": 0.01, "weight_decay": decay(1e-4), "schedule": "constant",
        "density": 6_794 / 2_794_000, "drop": 0.2,
    }  # fmt: skip
    runs = [("ctre", {}), ("set", {"rewire_last": True})]
    return [
        {"run": method, "published": "ctre below set", **trained(method, WIDE, data, seed, keys | own).figures()}
        for method, own in runs
    ]
