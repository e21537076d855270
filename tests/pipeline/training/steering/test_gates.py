"""Channels that no batch norm ends: what they matter, how they come to 0, and where such a training lands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import demport
from pipeline import config
from pipeline.data import Dataset, load
from pipeline.models import build
from pipeline.results import Trained
from pipeline.surgery import shrink
from pipeline.training.steering.gates import FADING, HELD, MATTERS
from pipeline.training.train import Setting, train_sparse, trained_network
from runtime.macs import macs
from tests.pipeline.training.methods.test_every_method import Interrupting
from tests.pipeline.training.small import SHAPE, steering_of
from tests.pipeline.training.small_normfree import Transformer
from tests.pipeline.training.test_smooth import Noting

NETWORKS = ("transformer", "group_normed", "mixed")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load(config.Data())
    return dataclasses.replace(data, train=data.test)


def trained(network: str, out: Path, data: Dataset, checkpoints: Path | None = None, note: Any = None) -> Trained:
    out.mkdir(exist_ok=True)
    target = {"macs": 0.5, "floor": 0.1}
    keys = {"epochs": 4, "batch_size": 50, "checkpoint_s": 0.0, "optimizer": "adamw", "lr": 0.003, "target": target}
    model = config.Model(name=f"tests.pipeline.training.small_normfree:{network}")
    return train_sparse(config.sparse_of(**keys), Setting(model, data, 1, 1, "cpu", out, note or Noting(), checkpoints))


@pytest.mark.parametrize("network", NETWORKS)
def test_it_lands_says_what_dies_by_gates_and_goes_on_bit_for_bit(
    network: str, tmp_path: Path, digits: Dataset
) -> None:
    progress = Noting()
    whole = trained(network, tmp_path / "whole", digits, note=progress)
    assert whole.reached is not None and whole.reached["macs"] == pytest.approx(0.5, rel=0.06)
    rows = [json.loads(line) for line in whole.history.read_text().splitlines()]
    removals = [removal for row in rows for removal in row["removals"]]
    assert len(removals) >= 2 and max(removal["max_rel_diff"] for removal in removals) < 1e-6
    (note,) = [text for text in progress.notes if "gates" in text]
    assert ("beside 1 batch norms" in note) == (network == "mixed")
    assert ("patches as wide as before" in note) == (network == "transformer")
    model = config.Model(name=f"tests.pipeline.training.small_normfree:{network}")
    dense, compact = build(model, num_classes=10, input_shape=SHAPE), trained_network(model, digits, whole)
    assert macs(compact, SHAPE) / macs(dense, SHAPE) == pytest.approx(whole.reached["macs"], rel=0.02)
    assert {n for n, _ in compact.named_parameters()} == {n for n, _ in dense.named_parameters()}
    with pytest.raises(KeyboardInterrupt):
        trained(network, tmp_path / "half", digits, tmp_path / "checkpoints", Interrupting(at=13))
    again = trained(network, tmp_path / "half", digits, tmp_path / "checkpoints")
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def test_a_channel_matters_as_the_loss_would_change_with_all_that_makes_it() -> None:
    """Weights of 1, biases of 2, gradients by hand: (sum of w g)^2, times the 0.02 of an average of memory 0.98."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.GELU(), nn.Linear(3, 2))
    steering, state = steering_of(network, config.Target(channels=0.34, reached_at=0.5, floor=0.3), gates=True)
    assert steering.gated == ("1",) and steering.staying == ()
    weight, bias = network.get_parameter("1.weight"), network.get_parameter("1.bias")
    with torch.no_grad():
        weight.fill_(1.0)
        bias.fill_(2.0)
    for step in range(50):
        weight.grad, bias.grad = torch.zeros(3, 64), torch.tensor([3.0, -1.0, 2.0])
        weight.grad[1] = 0.25
        steering.after_step(step)
        if step == 0:
            found = state.optimizer.inner.state[bias][MATTERS]
            assert found.tolist() == pytest.approx([0.02 * 6.0**2, 0.02 * (16.0 - 2.0) ** 2, 0.02 * 4.0**2])
            assert state.optimizer.inner.state[weight] == {}, "what is large carries nothing"
        if steering.due(step):
            steering.pick(step)
    assert weight.abs().sum(1).tolist() == [0.0, 64.0, 0.0] and bias.tolist() == [0.0, 2.0, 0.0]
    assert state.optimizer.inner.state[bias][HELD].tolist() == [1.0, 0.0, 1.0]
    assert state.optimizer.inner.state[bias][FADING].sum() == 0
    with torch.no_grad():
        weight.add_(1.0)
    steering.after_step(60)
    assert weight.abs().sum(1).tolist() == [0.0, 128.0, 0.0], "what has faded stays 0"
    assert {name: mask.sum().item() for name, mask in steering.pinned().items()} == {"1.weight": 128, "1.bias": 2}


def test_streams_go_where_nothing_is_added_that_cannot_be_cut() -> None:
    """Norms over a stream go on counting what was cut, so that the cut is exact."""
    for positions, rest in ((True, ("patches",)), (False, ())):
        steering, _ = steering_of(Transformer(10, positions), config.Target(macs=0.5), gates=True)
        assert steering.staying == rest and ("patches" in steering.gated) == (not positions)
    network = Transformer(10, positions=False).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.startswith("patches") or name.endswith(("proj.weight", "proj.bias", "fc2.weight", "fc2.bias")):
                p[[2, 7]] = 0
            if "norm" in name:
                p[[2, 7]] = 0
    compact = shrink(network, (torch.rand(2, *SHAPE),))
    assert compact.model.get_parameter("patches.weight").shape[0] == 14
    assert compact.certificate["law"]["max_rel_diff"] < 1e-9


def test_what_cannot_die_is_one_line_before_any_step() -> None:
    x = torch.zeros(2, *SHAPE)
    network = Transformer()
    optimizer = torch.optim.AdamW(network.parameters())
    with pytest.raises(demport.UserError, match="no batch norm with a trained scale; batch norms, or a target"):
        demport.sparsify(network, optimizer, (x,), steps=5)
    with pytest.raises(demport.UserError, match="no batch norm with a trained scale"):
        demport.sparsify(network, optimizer, (x,), steps=5, target={"macs": 0.5}, options={"gates": False})
    whole = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(demport.UserError, match="none of its channels can be cut"):
        demport.sparsify(whole, torch.optim.SGD(whole.parameters(), 0.1), (x,), steps=5, target={"macs": 0.5})
