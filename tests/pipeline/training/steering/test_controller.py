"""A training that is steered lands where it was told to, and leaves alone what it was not told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.data import load
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.training.steering.prunable import FADING, HELD, MATTERS
from pipeline.training.steering.stopwatch import Stopwatch
from pipeline.training.train import Setting, train_sparse, trained_network
from runtime.macs import macs
from tests.pipeline.training.small import SHAPE, steering_of

MODEL = config.Model(args={"width": 16})


def steered(out: Path, target: dict[str, object], **changes: object) -> Trained:
    section = config.sparse_of(**{"epochs": 12, "batch_size": 100, "target": target} | changes)
    out.mkdir(exist_ok=True)
    task = Setting(MODEL, load(config.Data()), 1, 1, "cpu", out, Silent())
    return train_sparse(section, task)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_macs_land_within_three_percent_and_the_network_still_works(optimizer: str, tmp_path: Path) -> None:
    trained = steered(tmp_path, {"macs": 0.35}, optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 0.005)
    assert trained.reached is not None
    assert trained.reached["macs"] == pytest.approx(0.35, rel=0.03)
    network = trained_network(MODEL, load(config.Data()), trained)
    dense = build(MODEL, num_classes=10, input_shape=SHAPE)
    assert macs(network, SHAPE) / macs(dense, SHAPE) == pytest.approx(0.35, rel=0.03)
    assert trained.accuracy > 0.9
    rows = [json.loads(line) for line in trained.history.read_text().splitlines()]
    removals = [r for row in rows for r in row["removals"]]
    assert len(removals) >= 6
    steps = len(load(config.Data()).train) // 100 * 12
    assert removals[-1]["step"] == steps // 2, "the target is reached in the middle, then survivors recover"
    assert [row["lambda"] > 0 for row in rows] == [k in range(1, 5) for k in range(12)]


def test_channels_land_and_every_group_keeps_its_floor(tmp_path: Path) -> None:
    trained = steered(tmp_path, {"channels": 0.5, "floor": 0.4}, cost="macs")
    assert trained.reached is not None
    assert trained.reached["channels"] == pytest.approx(0.5, rel=0.03)
    assert trained.dead / trained.channels == pytest.approx(0.5, abs=0.02)
    network = trained_network(MODEL, load(config.Data()), trained)
    widths = {n: m.out_channels for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    first = {n: m.out_channels for n, m in build(MODEL, num_classes=10, input_shape=SHAPE).named_modules()
             if isinstance(m, nn.Conv2d)}  # fmt: skip
    assert all(widths[name] >= 0.4 * first[name] for name in first)


def test_a_floor_that_forbids_the_target_ends_above_it(tmp_path: Path) -> None:
    trained = steered(tmp_path, {"macs": 0.05, "floor": 0.5})
    assert trained.reached is not None
    assert 0.2 < trained.reached["macs"] < 0.35, "half of every group is a quarter of the MACs and a little more"


@pytest.mark.parametrize("overhead, power", [(0.3, 1.0), (0.05, 0.7)], ids=["launches", "small layers are slow"])
def test_latency_lands_within_three_percent_of_a_clock_that_is_known(
    overhead: float, power: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 ms for the dense network, of which `overhead` stays whatever is cut; the rest goes with MACs^power."""
    dense = macs(build(MODEL, num_classes=10, input_shape=SHAPE), SHAPE)

    def clock(network: nn.Module) -> float:
        return float(overhead + (1 - overhead) * (macs(network, SHAPE) / dense) ** power)

    monkeypatch.setattr(Stopwatch, "ms", lambda self, *networks: [clock(network) for network in networks])
    trained = steered(tmp_path, {"latency_ms": 0.6})
    network = trained_network(MODEL, load(config.Data()), trained)
    assert clock(network) == pytest.approx(0.6, rel=0.03)
    assert trained.reached is not None and trained.reached["dense_latency_ms"] == 1.0


def test_the_least_important_channels_fade_to_exactly_zero_and_nothing_else_moves() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    steering, state = steering_of(network, config.Target(channels=0.5, reached_at=0.5))
    gamma, beta = network.get_parameter("1.weight"), network.get_parameter("1.bias")
    with torch.no_grad():
        beta.fill_(0.5)
    order = torch.tensor([3.0, 7.0, 1.0, 5.0, 2.0, 8.0, 4.0, 6.0])
    assert (steering.bounds[0], steering.bounds[-1]) == (10, 50)
    for step in range(50):
        gamma.grad, beta.grad = order.clone(), torch.zeros(8)
        steering.after_step(step)
        if steering.due(step):
            steering.pick(step)
        if step < 10:
            assert torch.equal(gamma, torch.ones(8))
    assert gamma.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert beta.tolist() == [0.5 * value for value in gamma.tolist()]
    own = state.optimizer.inner.state[gamma]
    assert own[HELD].tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert own[FADING].sum() == 0
    with torch.no_grad():
        gamma.add_(1.0)
    steering.after_step(60)
    assert gamma.tolist() == [0.0, 2.0] * 4, "what has faded stays 0"


def test_importance_is_the_squared_first_order_change_of_the_loss() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 10))
    steering, state = steering_of(network, config.Target(channels=0.5))
    gamma, beta = network.get_parameter("1.weight"), network.get_parameter("1.bias")
    with torch.no_grad():
        gamma.copy_(torch.tensor([2.0, 1.0]))
        beta.copy_(torch.tensor([1.0, -1.0]))
    gamma.grad, beta.grad = torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 4.0])
    steering.after_step(0)
    found = state.optimizer.inner.state[gamma][MATTERS]
    assert found.tolist() == pytest.approx([0.02 * (2 * 3 - 1) ** 2, 0.02 * (1 - 4) ** 2])
    assert state.optimizer.inner.state[gamma].keys() == {MATTERS, FADING, HELD}
    before, gamma.grad = found.clone(), torch.full((2,), torch.inf)
    steering.after_step(1, stepped=False)
    assert torch.equal(found, before), "gradients that overflowed teach nothing"


def test_channels_of_a_layer_matter_more_the_fewer_are_left() -> None:
    """Channels of the first layer matter 1 each, of the second 5, times (8 / those left)^2: 1, 1.31, 1.78, 2.56, 4, 7.1
    of the first and 5, 6.5 of the second are the eight smallest; the ninth would be 8.9. One by one, the first layer
    would have lost all but its floor."""
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 10))
    steering, _ = steering_of(network, config.Target(channels=0.5, reached_at=0.5, floor=0.1))
    for step in range(50):
        for name, matters in (("1", 1.0), ("4", 5.0)):
            norm = network.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            norm.bias.grad, faded = torch.zeros(8), norm.weight.detach() == 0
            norm.weight.grad = torch.where(faded, 0.0, matters**0.5 / norm.weight.detach())
        steering.after_step(step)
        if steering.due(step):
            steering.pick(step)
    left = [int((network.get_parameter(f"{name}.weight") != 0).sum()) for name in ("1", "4")]
    assert left == [2, 6]


@pytest.mark.parametrize("seed", range(4))
def test_wide_steps_land_too_and_leave_other_layers_above_their_floor(seed: int) -> None:
    """Streams and layers of 16 to 32 channels in steps of 8, whatever matters most. A quarter of the MACs and a little
    more is what floors of 8 everywhere leave where the first stream stays whole."""
    generator = torch.Generator().manual_seed(seed)
    network = build(config.Model(args={"width": 16, "blocks": 2}), num_classes=10, input_shape=SHAPE)
    steering, _ = steering_of(network, config.Target(macs=0.2), align=8)
    matters = {
        module.weight: torch.exp(2 * torch.randn(len(module.weight), generator=generator))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    for step in range(50):
        for gamma, value in matters.items():
            gamma.grad = value
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.grad = torch.zeros_like(module.bias)
        steering.after_step(step)
        if steering.due(step):
            steering.pick(step)
    reached = steering.reached()
    assert reached["macs"] == pytest.approx(0.2, rel=0.03)
    assert reached["channels"] > 0.3
