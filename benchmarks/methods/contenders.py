"""What `benchmarks.methods` compares: one network, trained by each method on the same data for as many steps."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.methods import peers
from pipeline import config
from pipeline.data import Dataset
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.training.compute.device import derived_seed, torch_device
from pipeline.training.train import Setting, train_dense, train_sparse, trained_network
from runtime.macs import macs

Case = tuple[str, float, int]
"""Method, share of the MACs or strength of the penalty, seed."""
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
ALIGNED = 8
ARGS: Mapping[str, Mapping[str, Any]] = {"demo:resnet": {"blocks": 2}}
"""Of the networks compared, beside their width."""
LR = {"sgd": 0.1, "adamw": 0.005}
DECAY = 5e-4
"""As torch's optimizers have it. Our SGD does not send it through the momentum, which makes it 1 / (1 - MOMENTUM) times
as strong there."""
MOMENTUM = 0.9


@dataclass(frozen=True)
class Trainee:
    """A final network, compact, in eval mode, on the CPU; and figures of its training."""

    network: nn.Module
    figures: dict[str, Any] = field(default_factory=dict)


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


def cases(seeds: Sequence[int], shares: Sequence[float] = tuple(SHARES)) -> list[Case]:
    """The smallest share and the strengths of every seed come first: comparable whenever it ends."""
    (share, names), *others = sorted((share, SHARES[share]) for share in shares)
    strengths = [(f"demp {cost}", strength) for cost, all_ in STRENGTHS.items() for strength in all_]
    first = [("dense", 1.0), *((name, share) for name in names), *strengths]
    rest = [(name, share) for share, names in others for name in names]
    return [(method, amount, seed) for part in (first, rest) for seed in seeds for method, amount in part]


def asked(case: Case) -> str:
    """What a case was told to do, in words."""
    method, amount, _ = case
    if method == "dense":
        return ""
    return f"lambda {amount:g}" if method.startswith("demp") else f"{100 * amount:g} % of the MACs"


def trained_by(case: Case, recipe: Recipe, data: Dataset, threads: int) -> Trainee:
    """The final network of a case. UserError where the method refuses."""
    method, amount, seed = case
    if method in peers.METHODS:
        torch.set_num_threads(threads)
        torch.manual_seed(derived_seed(seed, "init"))
        section, device = config.Training(**recipe.keys()), torch_device(recipe.device)
        built = recipe.built(recipe.width, data)
        return Trainee(peers.pruned(built, method, amount, seed, data, section, device))
    model = recipe.model_of(recipe.narrow_width(amount, data) if method == "narrow" else recipe.width)
    with tempfile.TemporaryDirectory() as folder:
        task = Setting(model, data, seed, threads, recipe.device, Path(folder), Silent())
        if method in ("dense", "narrow"):
            result = train_dense(config.Training(**recipe.keys()), task)
        else:
            _, cost, *aligned = method.split()
            own = {"target": config.Target(macs=amount)} if method.startswith("steered") else {"lambda_peak": amount}
            section = config.sparse_of(**{**recipe.keys(), "cost": cost, **own})
            result = train_sparse(section, task, align=ALIGNED if aligned else 1)
        return Trainee(trained_network(model, data, result))
