"""A small network whose dead channels are known, and its census interface written out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data import Dataset, load
from pipeline.progress import Silent
from pipeline.surgery.watch import anatomy
from pipeline.training.compute import Compute
from pipeline.training.hooks import Training
from pipeline.training.optimizer import optimizer_for
from pipeline.training.optimizer.schedule import learning_rate
from pipeline.training.state import TrainState
from pipeline.training.steering.controller import Steering
from pipeline.training.train import Setting, training_of
from runtime.macs import macs

SHAPE = (1, 8, 8)


class SmallNet(nn.Module):
    """(N, 1, H, W) -> (N, 2): two conv + batch norm + ReLU layers of 4 and 3 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(4, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.linear = nn.Linear(3, 2)

    def activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.relu1(self.bn1(self.conv1(x)))
        return first, self.relu2(self.bn2(self.conv2(first)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.activations(x)[1].mean((2, 3)))
        return y


def smooth(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Whose activations let a channel learn at 0."""
    layers: list[nn.Module] = []
    for inputs, activation in ((input_shape[0], nn.SiLU()), (12, nn.GELU()), (12, nn.LeakyReLU(0.1))):
        layers += [nn.Conv2d(inputs, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), activation]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes))


def chain(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Linear layers one after another."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(),
        nn.Linear(20, num_classes),
    )  # fmt: skip


class SmallUnits:
    """What `pipeline.surgery.watch` must say of a SmallNet, worked out by hand."""

    def __init__(self, model: SmallNet) -> None:
        self.model = model
        self.watch = {"relu1": 4, "relu2": 3}
        self.axis = {"relu1": 1, "relu2": 1}
        self.layer_channels = {"conv1.weight": 4, "conv2.weight": 3}
        self.channels = 7
        self.largest_batch = 0

    def observe(self, model_inputs: tuple[Tensor, ...], /) -> dict[str, Tensor]:
        training = self.model.training
        self.model.eval()
        self.largest_batch = max(self.largest_batch, len(model_inputs[0]))
        first, second = self.model.activations(model_inputs[0])
        self.model.train(training)
        return {"relu1": first, "relu2": second}

    def removable(self, dead: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {"conv1.weight": dead["relu1"], "conv2.weight": dead["relu2"]}

    def dead_count(self, dead: dict[str, Tensor], /) -> int:
        return sum(int(mask.sum()) for mask in dead.values())

    def live_masks(self, dead: dict[str, Tensor], /) -> dict[str, Tensor]:
        one, two = (~dead["relu1"]).float(), (~dead["relu2"]).float()
        return {
            "conv1.weight": one.view(4, 1, 1, 1),
            "conv2.weight": two.view(3, 1, 1, 1) * one.view(1, 4, 1, 1),
            "linear.weight": two.view(1, 3),
            **dict.fromkeys(("conv1.bias", "bn1.weight", "bn1.bias"), one),
            **dict.fromkeys(("conv2.bias", "bn2.weight", "bn2.bias"), two),
        }


def joining(section: config.Training, data: Dataset | None = None, seed: int = 1, **changes: Any) -> Training:
    """What a method learns of a training on the digits; `changes` replace fields of it."""
    data = data or load(config.Data())
    setting, network = Setting(config.Model(), data, seed, 1, "cpu", Path(), Silent()), SmallNet()
    training = training_of(section, network, data, Compute(torch.device("cpu")), setting)
    return dataclasses.replace(training, first=lambda: network, **changes)


def joining_test_split(section: config.Training, steps_per_epoch: int) -> Training:
    """The same, with epochs of so many steps, and censuses on the test split."""
    data = load(config.Data())
    training = joining(section, dataclasses.replace(data, train=data.test))
    return dataclasses.replace(
        training,
        steps=section.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        rate=lambda step: learning_rate(section, step, steps_per_epoch),
    )


def verdict(relu1: list[int], relu2: list[int]) -> dict[str, Tensor]:
    """1 = dead."""
    return {"relu1": torch.tensor(relu1).bool(), "relu2": torch.tensor(relu2).bool()}


def state(model: nn.Module, units: Any = None) -> TrainState:
    """A state of the network as methods get it, with plain SGD; `units` in place of its real anatomy."""
    optimizer = optimizer_for(config.Training(), [p for p in model.parameters() if p.requires_grad])
    made: Any = units or (SmallUnits(model) if isinstance(model, SmallNet) else None)
    return TrainState(model, made, optimizer, model, 0)


def steering_of(
    network: nn.Module,
    target: config.Target,
    total: int = 100,
    align: int = 1,
    latencies_of: Callable[[nn.Module, nn.Module], tuple[float, float]] | None = None,
    note: Callable[[str], None] = lambda text: None,
    gates: bool = False,
) -> tuple[Steering, TrainState]:
    """Of a network for images of SHAPE, every channel of cost 1."""
    section = config.Training()
    optimizer = optimizer_for(section, list(network.parameters()))
    state = TrainState(network, anatomy(network, (torch.zeros(2, *SHAPE),)), optimizer, network, macs(network, SHAPE))
    made = Steering(target, total, align, lambda _state, costs: np.ones(costs.count), latencies_of, note, gates)
    made.bind(state)
    return made, state


def faded(steering: Steering, network: nn.Module, steps: int, generator: torch.Generator) -> None:
    """So many steps with gradients at random, and nothing cut out on the way."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for step in range(steps):
        for norm in norms:
            norm.weight.grad = torch.randn(len(norm.weight), generator=generator)
            norm.bias.grad = torch.zeros(len(norm.weight))
        steering.after_step(step)
        if steering.due(step):
            steering.pick(step)
