"""One and two steps of each optimizer, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.training.optimizer import Optimizer, optimizer_for


def stepped(optimizer: Optimizer, parameter: nn.Parameter, gradients: list[float], lr: float) -> list[float]:
    values = []
    for gradient in gradients:
        optimizer.zero_grad()
        parameter.grad = torch.tensor([gradient])
        optimizer.step(lr)
        values.append(float(parameter.detach()))
    return values


def test_sgd_decays_apart_from_momentum() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    section = config.Training(optimizer="sgd", lr=9.0, momentum=0.5, weight_decay=0.1)
    found = stepped(optimizer_for(section, [parameter]), parameter, [1.0, 3.0], lr=0.2)
    first = 2.0 * (1 - 0.02) - 0.2 * 1.0
    second = first * (1 - 0.02) - 0.2 * (0.5 * 1.0 + 3.0)
    assert found == pytest.approx([first, second], rel=1e-6)
    assert first == pytest.approx(1.76)


def test_adamw_decays_apart_from_the_moments() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    section = config.Training(optimizer="adamw", lr=9.0, weight_decay=0.1)
    found = stepped(optimizer_for(section, [parameter]), parameter, [4.0, 4.0], lr=0.2)
    first = 2.0 * (1 - 0.02) - 0.2  # the moments cancel for a constant gradient: m / sqrt(v) = 1
    second = first * (1 - 0.02) - 0.2
    assert found == pytest.approx([first, second], rel=1e-6)
    assert second == pytest.approx(1.5248)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_a_gradient_only_the_decay_acts(name: str) -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    section = config.Training.model_validate({"optimizer": name, "weight_decay": 0.5})
    assert stepped(optimizer_for(section, [parameter]), parameter, [0.0], lr=0.1) == pytest.approx([1.9])
    none = config.Training.model_validate({"optimizer": name, "weight_decay": 0.0})
    assert stepped(optimizer_for(none, [parameter]), parameter, [0.0], lr=0.1) == pytest.approx([1.9])
