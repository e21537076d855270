"""Number formats, memory layout and compilation change how a step is computed, not what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline import config
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.training.compute import Compute
from pipeline.training.train import Setting, train_sparse

MODEL = config.Model(args={"width": 8})


def trained(out: Path, changes: dict[str, object], epochs: int = 4) -> Trained:
    out.mkdir(exist_ok=True)
    section = config.sparse_of(**{"epochs": epochs, "batch_size": 100, "lambda_peak": 1e-6, "lr": 0.02, **changes})
    return train_sparse(section, Setting(MODEL, load(config.Data()), 1, 1, "cpu", out, Silent()))


@pytest.mark.parametrize("changes", [{"amp": "bf16"}, {"channels_last": True}, {"amp": "fp16"}], ids=str)
def test_the_network_learns_the_same_way(changes: dict[str, object], tmp_path: Path) -> None:
    plain, other = trained(tmp_path / "a", {}), trained(tmp_path / "b", changes)
    losses = [[json.loads(line)["loss"] for line in run.history.read_text().splitlines()] for run in (plain, other)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert abs(other.accuracy - plain.accuracy) < 0.05


@pytest.mark.slow
def test_a_compiled_network_survives_removals(tmp_path: Path) -> None:
    run = trained(tmp_path, {"compile": True, "lambda_peak": 0.3, "prune_every": 28, "lr": 0.1}, 12)
    rows = [json.loads(line) for line in run.history.read_text().splitlines()]
    assert sum(len(row["removals"]) for row in rows) >= 1
    assert run.plan is not None
    assert run.accuracy > 0.5


def test_placing_turns_weights_and_images_and_nothing_else() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    compute = Compute(torch.device("cpu"), channels_last=True)
    before = [p.detach().clone() for p in network.parameters()]
    placed = compute.placed(network)
    assert placed.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(p, q) for p, q in zip(placed.parameters(), before, strict=True))
    x = torch.randn(2, 2, 3, 3)
    assert compute.images(x).is_contiguous(memory_format=torch.channels_last)
    assert Compute(torch.device("cpu")).images(x) is x
    assert compute.scaler() is None
    assert Compute(torch.device("cpu"), amp="fp16").scaler() is not None
