"""The benchmark of a published network pruned in a few epochs: its recipe is that of `demport prune`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.methods import finetune, peers
from pipeline import config
from pipeline.commands.prune import RECIPE
from pipeline.data import load
from pipeline.models import build
from runtime.macs import macs


def point(method: str, accuracy_pct: float, **keys: Any) -> dict[str, Any]:
    case = {"network": "resnet20", "share": 0.5, "epochs": 5, "seed": 0}
    return {**case, "method": method, "accuracy_pct": accuracy_pct, **keys}


def test_what_is_below_a_peer_in_the_mean_over_seeds_is_broken() -> None:
    points = [point("demp", 80.0), point("demp", 78.0, seed=1), point("magnitude", 79.5), point("magnitude", 78.0)]
    assert finetune.broken(points) == []
    worse = [*points, point("demp", 70.0, epochs=1), point("magnitude", 70.1, epochs=1)]
    assert finetune.broken(worse) == ["resnet20 at 0.5 of the MACs in 1 epochs: demp is below magnitude"]
    regularised = [*points, point("group norm", 79.1), point("group norm", 99.0, share=0.35)]
    assert finetune.broken(regularised) == ["resnet20 at 0.5 of the MACs in 5 epochs: demp is below group norm"]


def test_the_section_is_the_recipe_of_prune() -> None:
    section: Any = finetune.section_of({"share": 0.35, "epochs": 15})
    assert (section.epochs, section.target.macs, section.start) == (15, 0.35, "dense")
    assert (section.lr, section.target.reached_at) == (RECIPE["sparse.lr"], RECIPE["sparse.target.reached_at"])


def test_group_norm_cuts_between_its_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    fits: list[tuple[range, bool]] = []
    monkeypatch.setattr(peers, "fit", lambda n, d, s, epochs, c, v, pruner: fits.append((epochs, pruner is not None)))
    data = load(config.Data())
    dense = build(config.Model(name="cifar:resnet20"), num_classes=10, input_shape=(1, 8, 8)).eval()
    whole = macs(dense, data.input_shape)
    case = {"network": "resnet20", "share": 0.5, "epochs": 5, "seed": 0}
    cut = finetune._peer(case, dense, data, "group norm")
    assert macs(cut, data.input_shape) / whole <= 0.505
    assert cut(torch.zeros(2, 1, 8, 8)).shape == (2, 10), "its padded skips still fit"
    assert fits == [(range(2), True), (range(2, 5), False)]


def test_magnitude_cuts_in_one_shot_to_the_share() -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    data = load(config.Data())
    torch.manual_seed(0)
    network = build(config.Model(args={"width": 16}), num_classes=10, input_shape=(1, 8, 8)).eval()
    whole = macs(network, data.input_shape)
    cut = finetune._cut_once(network, 0.5, data)
    assert 0.4 < macs(cut, data.input_shape) / whole <= 0.505
    assert cut(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
