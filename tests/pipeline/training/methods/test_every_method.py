"""What holds for every method: it trains to the end, goes on bit for bit where it was interrupted, and surgery of what
it leaves computes the same function."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import config
from pipeline.data import Dataset, load
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.surgery import shrink
from pipeline.training.masks import in_scope
from pipeline.training.methods import METHODS
from pipeline.training.train import Setting, train_sparse, trained_network
from runtime.macs import macs

MODEL = config.Model(args={"width": 4})
CHAIN = config.Model(name="mlp:relu", args={"widths": [24, 20]})
MODELS = {"east": config.Model(args={"width": 4, "blocks": 3}), "ctre": CHAIN, "truly_sparse": CHAIN}
OPTIONS: dict[str, dict[str, Any]] = {
    "demp": {"lambda_peak": 0.5, "prune_every": 5},
    "slimming": {"target": {"macs": 0.4}, "strength": 1e-2},
    "group_norm": {"target": {"macs": 0.4}, "strength": 1e-2},
    "hesso": {"target": {"channels": 0.5}, "rounds": 3},
    "taylor": {"target": {"macs": 0.4}, "rounds": 3},
    "magnitude": {"target": {"channels": 0.5}},
    "random": {"target": {"macs": 0.4}},
    "ispasp": {"target": {"macs": 0.6}, "score_batches": 1},
    "targeted_dropout": {"target": {"macs": 0.4}},
    "snap": {"target": {"macs": 0.4}, "score_batches": 1},
    "crop": {"target": {"macs": 0.4}, "score_batches": 1},
    "earlycrop": {"target": {"channels": 0.5}, "score_batches": 1},
    "variational": {"cost": 0.05, "pace": 100.0},
    "rigl": {"density": 0.2, "every": 3},
    "set": {"density": 0.2},
    "srigl": {"density": 0.2, "every": 3},
    "chase": {"density": 0.2, "every": 3},
    "static_erk": {"density": 0.2},
    "static_uniform": {"density": 0.2},
    "snip": {"density": 0.2},
    "kstarts": {"density": 0.2, "starts": 2},
    "dissipating": {"density": 0.2, "epochs_of_removal": 2},
    "kstarts_dissipating": {"density": 0.2, "starts": 2, "epochs_of_removal": 2},
    "ctre": {"density": 0.2},
    "east": {"density": 0.1, "every": 3, "cycle_every": 2, "cycles": 1, "cycle": 0.4},
    "truly_sparse": {"density": 0.2, "prune_units": 0.1, "prune_every": 1},
    "scl": {"alpha": 20.0},
    "sr_ste": {},
    "han": {"rounds": 1, "retrain_epochs": 1, "phases": "apart"},
    "lottery_ticket": {"rounds": 2, "rewind": 0.15},
    "imp": {"density": 0.2, "rounds": 2, "retrain_epochs": 2},
    "bimp": {"density": 0.2, "rounds": 2},
    "nnrelief": {"rounds": 2, "retrain_epochs": 1, "reset": True},
}


class Interrupting(Silent):
    """Stops the training at its first report from step `at` on."""

    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, done: float, text: str = "") -> None:
        if done >= self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load(config.Data())
    return dataclasses.replace(data, train=data.test)


def training(method: str, out: Path, digits: Dataset, checkpoints: Path | None, progress: Silent) -> Trained:
    out.mkdir(exist_ok=True)
    keys = {"epochs": 4, "batch_size": 64, "checkpoint_s": 0.0, **OPTIONS[method]}
    section = config.sparse_of(method=method, **keys)
    return train_sparse(section, Setting(MODELS.get(method, MODEL), digits, 1, 1, "cpu", out, progress, checkpoints))


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_bit_for_bit_and_surgery_keeps_the_function(method: str, tmp_path: Path, digits: Dataset) -> None:
    whole = training(method, tmp_path / "whole", digits, None, Silent())
    epochs = len(whole.history.read_text().splitlines())
    with pytest.raises(KeyboardInterrupt):
        training(
            method,
            tmp_path / "half",
            digits,
            tmp_path / "checkpoints",
            Interrupting(at=epochs * (len(digits.train) // 64) // 2 + 2),
        )
    again = training(method, tmp_path / "half", digits, tmp_path / "checkpoints", Silent())
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    network = trained_network(MODELS.get(method, MODEL), digits, whole)
    weights = torch.cat([weight.flatten() for weight in in_scope(network).values()])
    if "density" in OPTIONS[method] and method not in ("dissipating", "east"):
        assert float((weights != 0).float().mean()) == pytest.approx(OPTIONS[method]["density"], abs=0.03)
    last = json.loads(whole.history.read_text().splitlines()[-1])
    if method == "demp" or "channels" in last:
        assert "living_weights" not in last
    else:  # a method that masks: the report says what that is worth
        living = int((weights != 0).sum())
        of_all = method not in ("scl", "sr_ste", "east")  # which leave layers out, or count shared weights once
        assert not of_all or last["living_weights"] == pytest.approx(living, rel=0.02)
        assert last["living_weights"] <= 1.02 * living and 0 <= last["density"] <= 1
    if (target := OPTIONS[method].get("target")) is not None:
        dense = macs(build(MODEL, num_classes=10, input_shape=(1, 8, 8)), (1, 8, 8))
        assert whole.reached is not None
        assert whole.reached["macs"] == pytest.approx(macs(network, (1, 8, 8)) / dense)
        assert all(whole.reached[unit] == pytest.approx(share, abs=0.06) for unit, share in target.items())
    compact = shrink(network, (torch.zeros(2, 1, 8, 8),))
    x = torch.rand(4, 1, 8, 8)
    assert torch.allclose(compact.model(x), network(x), atol=1e-4)
    assert compact.certificate["law"]["max_rel_diff"] < 1e-9
