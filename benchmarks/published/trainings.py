"""One training of a check: a network, a method, and what became of it."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import real_data
from benchmarks.results import Point
from pipeline import config
from pipeline.data import Dataset
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.surgery import shrink
from pipeline.training.masks import in_scope
from pipeline.training.train import Setting, train_dense, train_sparse, trained_network

MOMENTUM = 0.9
NETWORKS = "benchmarks.published.networks"
LENET, LENET5 = config.Model(name=f"{NETWORKS}:mlp"), config.Model(name=f"{NETWORKS}:lenet5")


@dataclass(frozen=True)
class Budget:
    """`share` of the epochs that a check takes by itself; at least one epoch is trained."""

    share: float = 1.0
    data: Path = real_data.DEFAULT

    def epochs(self, whole: int) -> int:
        return max(1, round(self.share * whole))


@dataclass(frozen=True)
class Outcome:
    network: nn.Module
    """As it was trained, in eval mode."""
    rows: list[dict[str, Any]]
    """Of the history."""
    epochs: int

    @property
    def error_pct(self) -> float:
        """Of the last epoch, on the test split."""
        return 100 * (1 - float(self.rows[-1]["accuracy"]))

    def figures(self) -> Point:
        """Final and best error; weights that live, and their share; widths of the hidden layers after surgery."""
        weights = in_scope(self.network).values()
        living = sum(int((weight != 0).sum()) for weight in weights)
        best = 100 * (1 - max(float(row["accuracy"]) for row in self.rows))
        return {
            "epochs": self.epochs, "error_pct": self.error_pct, "best_error_pct": best, "weights": living,
            "density_pct": 100 * living / sum(weight.numel() for weight in weights),
        }  # fmt: skip


@functools.cache
def images(name: str, folder: Path, side: int | None = None, n: int | None = None) -> Dataset:
    return real_data.dataset(name, folder, side, n)


def trained(
    method: str, model: config.Model, data: Dataset, seed: int, keys: Mapping[str, Any], weights: Path | None = None
) -> Outcome:
    """By a method of `sparse`, or dense; `weights` are written there."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(model, data, seed, torch.get_num_threads(), "cpu", Path(folder), Silent())
        result = ended(method, setting, keys)
        network = trained_network(model, data, result)
        if weights is not None:
            weights.write_bytes(result.weights.read_bytes())
        return Outcome(network, rows_of(result), result.epochs)


def ended(method: str, setting: Setting, keys: Mapping[str, Any]) -> Trained:
    if method == "dense":
        return train_dense(config.Training(**keys), setting)
    return train_sparse(config.sparse_of(method=method, **keys), setting)


def rows_of(result: Trained) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.history.read_text("utf-8").splitlines()]


def widths_of(network: nn.Module, data: Dataset) -> list[int]:
    """Of the hidden layers, after surgery by proof alone."""
    compact = shrink(network, (torch.zeros(2, *data.input_shape),)).model
    layers = [m for m in compact.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [int(layer.weight.shape[0]) for layer in layers[:-1]]


def decay(coupled: float, momentum: float = MOMENTUM) -> float:
    """Weight decay of ours, beside the momentum, that is as strong as torch's, which goes through it."""
    return coupled / (1 - momentum)
