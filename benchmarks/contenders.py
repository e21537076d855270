"""What benchmarks/methods.py compares: one network, trained by each method on the same data for as many steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from pipeline import config
from pipeline.data import Dataset
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.training.repeatable import derived_seed, torch_device
from pipeline.training.stage import Task, train_demp, train_dense, trained_network
from runtime.macs import macs

Case = tuple[str, float, int]
"""Method, share of the MACs or strength of the penalty, seed."""
ALIGNED = 8
ARGS: Mapping[str, Mapping[str, Any]] = {"demo:resnet": {"blocks": 2}}
"""Of the networks compared, beside their width."""
LR = {"sgd": 0.1, "adamw": 0.005}
DECAY = 5e-4
"""As torch's optimizers have it. Our SGD does not send it through the momentum, which makes it 1 / (1 - MOMENTUM) times
as strong there."""
MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """The network at its full width, and how all of them train."""

    model: str = "demo:resnet"
    width: int = 16
    epochs: int = 12
    optimizer: str = "sgd"
    batch: int = 128
    amp: str = "bf16"
    compile: bool = False
    device: str = "cpu"

    def keys(self) -> dict[str, Any]:
        """Of a section of the config: those that all methods share."""
        decay = DECAY / (1 - MOMENTUM) if self.optimizer == "sgd" else DECAY
        return {
            "epochs": self.epochs, "batch_size": self.batch, "optimizer": self.optimizer, "lr": LR[self.optimizer],
            "momentum": MOMENTUM, "weight_decay": decay, "augment": "crop_flip", "amp": self.amp,
            "channels_last": True, "compile": self.compile,
        }  # fmt: skip

    def model_of(self, width: int) -> config.Model:
        return config.Model(name=self.model, args={"width": width, **ARGS.get(self.model, {})})

    def built(self, width: int, data: Dataset) -> nn.Module:
        return build(self.model_of(width), num_classes=len(data.names), input_shape=data.input_shape)

    def narrow_width(self, share: float, data: Dataset) -> int:
        """The width whose network has the share of MACs that is nearest to the one asked for."""
        whole = macs(self.built(self.width, data), data.input_shape)

        def of(width: int) -> float:
            return macs(self.built(width, data), data.input_shape) / whole

        above = 2 + bisect_left(range(2, self.width), share, key=of)
        nearest = (width for width in (above - 1, above) if width in range(2, self.width))
        return min(nearest, key=lambda width: abs(of(width) - share))


def trained_by(case: Case, recipe: Recipe, data: Dataset, threads: int, folder: Path) -> nn.Module:
    """The final network of a case, compact, in eval mode, on the CPU."""
    method, amount, seed = case
    if method in peers.METHODS:
        torch.set_num_threads(threads)
        torch.manual_seed(derived_seed(seed, "init"))
        section, device = config.Training(**recipe.keys()), torch_device(recipe.device)
        return peers.pruned(recipe.built(recipe.width, data), method, amount, seed, data, section, device)
    model = recipe.model_of(recipe.narrow_width(amount, data) if method == "narrow" else recipe.width)
    task = Task(model, data, seed, threads, recipe.device, folder, Silent())
    if method in ("dense", "narrow"):
        return trained_network(model, data, train_dense(config.Training(**recipe.keys()), task))
    _, cost, *aligned = method.split()
    asked = {"target": config.Target(macs=amount)} if method.startswith("steered") else {"lambda_peak": amount}
    section = config.Demp.model_validate({**recipe.keys(), "cost": cost, **asked})
    return trained_network(model, data, train_demp(section, task, align=ALIGNED if aligned else 1))
