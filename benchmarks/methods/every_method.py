"""What `benchmarks.methods --every` compares: each row of `pipeline.training.methods`, and what needs no method.

All train for `epochs` in all: rounds, tries and retrainings are parts of them, so their numbers lie here (`rounds_of`).
Channel methods are asked for shares of MACs, weight methods for densities; those that take neither for what they take.
Beside them: the dense network, dense networks of fewer channels, the dense network on smaller images, and, for the
methods that want one, an MLP. What a training leaves is cut as a run cuts it: by proof, and by a census that all
training images confirm.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods.contenders import Case, Recipe, Trainee
from benchmarks.training import first
from pipeline import config
from pipeline.config.sparse import options_of
from pipeline.data import Dataset
from pipeline.models import build_for
from pipeline.models.demo import ResNet
from pipeline.progress import Silent
from pipeline.surgery import Anatomy, shrink
from pipeline.surgery.proof.evidence import confirm
from pipeline.training.census import load_census
from pipeline.training.loop import steps_per_epoch
from pipeline.training.masks import in_scope
from pipeline.training.methods import METHODS
from pipeline.training.train import Setting, train_dense, train_sparse, trained_network
from runtime.errors import UserError
from runtime.macs import macs

SHARES, DENSITIES = (0.35, 0.2), (0.1, 0.02, 0.01)
NARROW = (0.35, 0.2, 0.05)
"""Of the MACs: the last for those that weigh a mask against a small dense network."""
AMOUNTS: Mapping[str, tuple[float, ...]] = {
    "variational": (0.001, 0.01), "nnrelief": (0.8, 0.5), "scl": (0.1, 1.0), "sr_ste": (0.5,)
}  # fmt: skip
"""Of methods that are asked for neither MACs nor a density: cost, alpha, alpha, 2 of 4."""
WORDS = {"variational": "cost {:g}", "nnrelief": "alpha {:g}", "scl": "alpha {:g}", "sr_ste": "2 of 4"}
CHAINS = ("ctre", "truly_sparse")
"""Methods that want an MLP; `set` stands beside them on one."""
MLP, MLP_WIDTHS = "mlp", (256, 256)
CHANGES = 24
"""Of moving masks, over a whole training."""
CHOSEN_ON = 500
"""Test images that each epoch is judged on; the figures are of all."""


def cases(seeds: Sequence[int], densities: Sequence[float] = DENSITIES) -> list[Case]:
    """Seed by seed, so that a stop leaves whole ones."""
    names: list[tuple[str, float]] = [("dense", 1.0), *(("narrow", share) for share in NARROW)]
    names += [("low resolution", share) for share in SHARES]
    names += [(method, amount) for method in METHODS if method not in CHAINS
              for amount in amounts(method, densities)]  # fmt: skip
    names += [(f"{MLP} dense", 1.0)]
    names += [(f"{MLP} {method}", density) for method in ("set", *CHAINS) for density in densities]
    return [(method, amount, seed) for seed in seeds for method, amount in names]


def amounts(method: str, densities: Sequence[float]) -> Sequence[float]:
    return SHARES if "target" in options_of(method).model_fields else AMOUNTS.get(method, densities)


def asked(case: Case) -> str:
    """What a case was asked for, in words."""
    method, amount, _ = case
    name = method.removeprefix(f"{MLP} ")
    if name == "dense":
        return ""
    if name in WORDS:
        return WORDS[name].format(amount)
    channels = name not in METHODS or "target" in options_of(name).model_fields
    return f"{100 * amount:g} % of the {'MACs' if channels else 'weights'}"


def kind(method: str) -> str:
    """Of a case: what it is drawn and listed with."""
    if method.startswith(MLP):
        return MLP
    if method not in METHODS:
        return "dense"
    return "channels" if method == "variational" or "target" in options_of(method).model_fields else "weights"


def trained_by(case: Case, recipe: Recipe, data: Dataset, threads: int) -> Trainee:
    """The final network of a case, compact, in eval mode, on the CPU. UserError where the method refuses."""
    method, amount, seed = case
    name, model = method.removeprefix(f"{MLP} "), network_of(method, amount, recipe, data)
    few = dataclasses.replace(data, test=first(data.test, CHOSEN_ON))
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(model, few, seed, threads, recipe.device, Path(folder), Silent())
        if name not in METHODS:
            result = train_dense(config.Training(**recipe.keys()), setting)
        else:
            keys = recipe.keys() | keys_of(name, amount, recipe.epochs, steps_per_epoch(data.train, recipe.batch))
            result = train_sparse(config.sparse_of(method=name, **keys), setting)
        assert result.epochs == recipe.epochs, (case, result.epochs)
        network = trained_network(model, data, result)
        dead = None if result.census is None else load_census(result.census)
    living = sum(int((weight != 0).sum()) for weight in in_scope(network).values())
    whole = build_for(network_of(method if method.startswith(MLP) else "dense", 1.0, recipe, data), data)
    density = living / sum(weight.numel() for weight in in_scope(whole).values())
    example = (torch.zeros(2, *data.input_shape),)
    if dead is not None:
        batches = (x for x, _ in data.train.batches(512))
        dead = confirm(Anatomy(network, example), dead, batches).dead
    return Trainee(shrink(network, example, dead).model.eval(), {"density_pct": 100 * density, "weights": living})


def network_of(method: str, amount: float, recipe: Recipe, data: Dataset) -> config.Model:
    if method.startswith(MLP):
        return config.Model(name="mlp:relu", args={"widths": list(MLP_WIDTHS)})
    if method == "low resolution":
        model = recipe.model_of(recipe.width)
        name = f"{__name__}:low_resolution"
        return model.model_copy(update={"name": name, "args": {**model.args, "side": side_of(amount, recipe, data)}})
    return recipe.model_of(recipe.narrow_width(amount, data) if method == "narrow" else recipe.width)


def keys_of(method: str, amount: float, epochs: int, steps: int) -> dict[str, Any]:
    """The keys of a method's own for `epochs` of `steps` in all; overrides those that all trainings share."""
    fields = options_of(method).model_fields
    keys: dict[str, Any] = rounds_of(method, amount, epochs)
    if "target" in fields:
        keys["target"] = config.Target(macs=amount)
    if "density" in fields:
        keys["density"] = amount
    if fields.get("every") and fields["every"].default != "epoch":
        keys["every"] = max(1, epochs * steps // CHANGES)
    own: dict[str, dict[str, Any]] = {
        "demp": {"cost": "macs"}, "variational": {"cost": amount}, "scl": {"alpha": amount},
        "east": {"cycle_every": max(1, epochs * steps // (2 * CHANGES))},
    }  # fmt: skip
    return keys | own.get(method, {})


def rounds_of(method: str, amount: float, epochs: int) -> dict[str, Any]:
    """So that all phases together take `epochs`, which are a multiple of 6."""
    if epochs % 6:
        raise UserError(f"--epochs {epochs}", "a multiple of 6, which rounds divide", "e.g. --epochs 6")
    third, sixth = epochs // 3, epochs // 6
    tries = {"starts": 3, "try_epochs": 1, "epochs": epochs - 2}
    return {
        "lottery_ticket": {"epochs": third, "rewind": 0.5, "rounds": 4, "prune": 1 - amount**0.25},
        "imp": {"epochs": epochs // 2, "retrain_epochs": epochs - epochs // 2, "rounds": 3},
        "nnrelief": {
            "epochs": third, "retrain_epochs": sixth, "rounds": 4, "alpha_conv": amount, "alpha_linear": amount,
        },
        "han": {
            "epochs": 2 * third, "retrain_epochs": third, "rounds": 1, "quality": NormalDist().inv_cdf(1 - amount / 2),
        },
        "kstarts": tries,
        "kstarts_dissipating": {**tries, "epochs_of_removal": sixth},
        "dissipating": {"epochs_of_removal": epochs // 2},
    }.get(method, {})  # fmt: skip


class LowResolution(nn.Module):
    """A network on images that are made smaller first."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        small = F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
        logits: Tensor = self.network(small)
        return logits


def low_resolution(
    *, num_classes: int, input_shape: tuple[int, int, int], width: int, blocks: int, side: int
) -> nn.Module:
    return LowResolution(ResNet(input_shape[0], num_classes, width, blocks), side)


@functools.cache
def _shares(width: int, blocks: int, shape: tuple[int, int, int]) -> dict[int, float]:
    """Side -> share of the MACs of the dense network on images of `shape`."""
    network = ResNet(shape[0], 10, width, blocks)
    whole = macs(network, shape)
    return {side: macs(network, (shape[0], side, side)) / whole for side in range(4, shape[1])}


def side_of(share: float, recipe: Recipe, data: Dataset) -> int:
    """The side of images on which the dense network takes the share of MACs that is nearest to `share`."""
    args = recipe.model_of(recipe.width).args
    shares = _shares(args["width"], args["blocks"], data.input_shape)
    return min(shares, key=lambda side: abs(shares[side] - share))
