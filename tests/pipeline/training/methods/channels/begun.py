"""A SmallNet with a method that takes channels out, as a training begins it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.config.sparse import function_of
from pipeline.surgery.channels.ledger import Floats
from pipeline.surgery.watch import anatomy
from pipeline.training.compute import Compute
from pipeline.training.hooks import Hooks, Training
from pipeline.training.optimizer import optimizer_for
from pipeline.training.state import TrainState, state_of
from pipeline.training.steering.channels import Channels, channels_of
from tests.pipeline.training.small import SHAPE, SmallNet, joining_test_split

EXAMPLE = (torch.zeros(2, *SHAPE),)


def small(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet()


def channels(network: nn.Module) -> Channels:
    return channels_of(anatomy(network, EXAMPLE).traced, network, list(network.parameters()))


def by_layer(scores: Floats, of: Channels, layer: str) -> list[float]:
    """The scores of a layer's channels, in their order."""
    rows = next(part for part in of.makers if part.name == f"{layer}.weight")
    return [float(score) for score in scores[rows.classes]]


def begun(method: str, steps: int = 20, **options: Any) -> tuple[SmallNet, Hooks, TrainState]:
    """In a training of so many steps, over the network it began with."""
    section = config.sparse_of(method=method, epochs=1, batch_size=32, **options)
    training = joining_test_split(section, steps)
    training = dataclasses.replace(training, loss=lambda outputs, y: F.cross_entropy(outputs, y % 2))
    network = training.network
    assert isinstance(network, SmallNet)
    hooks: Hooks = function_of(method)(section, training)
    optimizer = optimizer_for(section, list(network.parameters()))
    state = state_of(network, optimizer, EXAMPLE, Compute(torch.device("cpu")))
    hooks.begin(state)
    return network, hooks, state


def training_over(network: nn.Module, **options: Any) -> tuple[Any, Training]:
    section = config.sparse_of(epochs=1, **options)
    return section, dataclasses.replace(joining_test_split(section, 20), first=lambda: network)


def filled(parameter: Tensor, rows: Sequence[float], axis: int = 0) -> None:
    """Every entry of a row is its number."""
    values = torch.tensor(np.asarray(rows), dtype=torch.float32)
    with torch.no_grad():
        parameter.copy_(values.view([-1 if a == axis else 1 for a in range(parameter.dim())]).expand_as(parameter))
