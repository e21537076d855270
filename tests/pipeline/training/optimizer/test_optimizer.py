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


def scaled(scaler: torch.amp.GradScaler, optimizer: Optimizer, parameters: list[nn.Parameter], factor: float) -> bool:
    """A step with the gradient `factor` in every entry of the first parameter and 1 in the others."""
    optimizer.zero_grad()
    loss = sum((p * (1.0 if k else factor)).sum() for k, p in enumerate(parameters))
    torch.autograd.backward(scaler.scale(torch.as_tensor(loss)))
    return optimizer.step(0.1, scaler)


@pytest.mark.parametrize("overflow", [3e38, float("nan")], ids=["inf", "nan"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_whose_gradients_overflow_leaves_nothing_but_a_lower_scale(name: str, overflow: float) -> None:
    """As the very first step, and between two others; the training goes on as if it had not been."""
    section = config.Training.model_validate({"optimizer": name, "weight_decay": 0.5})
    ends = []
    for factors in ([overflow, 2.0, overflow, 3.0], [2.0, 3.0]):
        parameters = [nn.Parameter(torch.ones(1000)) for _ in range(3)]
        optimizer, scaler = optimizer_for(section, parameters), torch.amp.GradScaler("cpu", init_scale=1024.0)
        torch.full((50, 1000), 1e30)  # what the allocator may hand out next
        for k, factor in enumerate(factors):
            before = [p.detach().clone() for p in parameters]
            assert scaled(scaler, optimizer, parameters, factor) == (factor in (2.0, 3.0))
            if factor not in (2.0, 3.0):
                assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True)), "nor does it decay"
                assert k or not optimizer.inner.state[parameters[0]], "moments begin with the first step"
        ends.append((scaler.get_scale(), parameters, [optimizer.inner.state[p] for p in parameters]))
    (scale, found, moments), (whole, wanted, others) = ends
    assert (scale, whole) == (256.0, 1024.0)
    assert all(torch.equal(p, q) for p, q in zip(found, wanted, strict=True))
    for one, other in zip(moments, others, strict=True):
        assert one.keys() == other.keys() and len(one) > 0
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_step_without_a_scaler_is_always_made() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = optimizer_for(config.Training(), [parameter])
    parameter.grad = torch.ones(2)
    assert optimizer.step(0.1) is True
    assert not torch.equal(parameter, torch.ones(2))
