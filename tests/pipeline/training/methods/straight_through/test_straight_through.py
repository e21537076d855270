"""Masked weights before, dense ones behind: by hand, step by step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.surgery.watch import anatomy
from pipeline.training.hooks import Training
from pipeline.training.methods.straight_through.scl import Scl, connectivity_gradient, scl
from pipeline.training.methods.straight_through.sr_ste import largest_of_four, layers_of, sr_ste
from runtime.errors import UserError
from tests.pipeline.training.small import SHAPE, joining_test_split, state


def wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 4), nn.Flatten())


def over(network: nn.Module, section: config.Training) -> Training:
    return dataclasses.replace(joining_test_split(section, 2), first=lambda: network)


def test_the_two_largest_of_four_input_channels_live() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    assert largest_of_four(weight).tolist() == [[False, True, True, False, True, True, False, False]]
    kernels = weight.view(1, 8, 1, 1) * torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    lives = largest_of_four(kernels)
    assert lives[0, :4, 0, 1].tolist() == [False, True, True, False]
    assert lives.sum() == 16


def test_sr_ste_steps_the_dense_weights_and_draws_the_masked_ones_to_zero() -> None:
    section = config.sparse_of(method="sr_ste", pull=0.5, epochs=2, momentum=0.0, weight_decay=0.0)
    network = wide()
    hooks = sr_ste(section, over(network, section))
    own = dataclasses.replace(state(network), anatomy=anatomy(network, (torch.zeros(2, *SHAPE),)))
    dense = hooks.carried["dense"]["2.weight"]
    before = dense.clone()
    hooks.begin(own)
    weight = own.network.get_parameter("2.weight")
    mask = largest_of_four(before)
    assert torch.equal(weight, before * mask)
    assert bool((network.get_parameter("0.weight") != 0).all())
    weight.grad = torch.ones_like(weight)
    hooks.after_backward(0)
    expected = before - 0.1 * (1 + 0.5 * before * ~mask)
    with torch.no_grad():
        weight.sub_(0.1 * weight.grad)
    hooks.after_step(0, True)
    assert torch.allclose(hooks.carried["dense"]["2.weight"], expected)
    assert torch.allclose(weight, expected * largest_of_four(expected))
    assert int((weight != 0).sum()) == weight.numel() // 2
    assert hooks.census is not None
    assert [verdict.tolist() for verdict in hooks.census().values()] == [4 * [False], 8 * [False]]


def test_input_channels_that_do_not_divide_by_four_are_named() -> None:
    shapes = {"stem.weight": torch.Size([6, 3, 3, 3]), "a.weight": torch.Size([8, 6, 3, 3]),
              "b.weight": torch.Size([8, 8, 1, 1]), "fc.weight": torch.Size([3, 8])}  # fmt: skip
    with pytest.raises(UserError, match=r"input channels of a \(6\) do not divide by 4"):
        layers_of(None, shapes)
    assert layers_of(("stem", "a"), shapes) == ["b.weight", "fc.weight"]
    with pytest.raises(UserError, match="no layer is left"):
        layers_of(tuple(name.removesuffix(".weight") for name in shapes), shapes)


def test_the_gradient_of_connectivity_is_of_unit_length_for_each_output() -> None:
    weight, gradient = torch.tensor([[3.0, -1.0], [2.0, 0.0]]), torch.tensor([[1.0, -4.0], [-5.0, 7.0]])
    own = connectivity_gradient(weight, gradient, 0.0, "kernel")
    assert torch.allclose(own, torch.tensor([[0.6, 0.8], [-1.0, 0.0]]))
    assert torch.allclose(connectivity_gradient(weight, gradient, 0.4, "weight"), own + 0.2)
    kernels = connectivity_gradient(
        torch.ones(1, 2, 1, 2), torch.tensor([[[[1.0, 2.0]], [[-1.0, 5.0]]]]), 0.0, "kernel"
    )
    assert torch.allclose(kernels.flatten(), torch.tensor([0.6, 0.6, 0.8, 0.8]))


def test_a_connection_dies_below_zero_keeps_its_weight_and_comes_back() -> None:
    section = config.sparse_of(method="scl", alpha=0.0, connectivity=0.1, epochs=10, schedule="constant", lr=1.0)
    network = wide()
    method = Scl(section, over(network, section))
    method.begin(state(network))
    weight, was = network.get_parameter("2.weight"), network.get_parameter("2.weight").detach().clone()
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, 0] = was[0, 0]  # descent turns this kernel off: gradient 1 of 1 at rate 0.1 makes m 0, which is off
    method.after_backward(0)
    method.after_step(0, True)
    assert not bool(weight[0, 0].any())
    assert torch.equal(method.dense.weights["2.weight"], was)
    assert method.figures(0)["flips"] == 9
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, 0] = -was[0, 0]
    method.after_backward(1)
    assert not bool(weight.grad[0, 0].any())  # its weights get no gradient while it is off
    method.after_step(1, True)
    assert torch.equal(weight, was)
    assert list(method.connectivity) == ["0.weight", "2.weight"]
    frozen = method.connectivity["2.weight"].clone()
    weight.grad = torch.ones_like(weight)
    method.after_backward(18)
    assert torch.equal(method.connectivity["2.weight"], frozen)


def test_scl_is_refused_where_it_cannot_work() -> None:
    early = config.sparse_of(method="scl", anneal_from=0.9, freeze_at=0.5)
    with pytest.raises(UserError, match="comes before"):
        scl(early, joining_test_split(early, 2))
    section = config.sparse_of(method="scl")
    single = over(nn.Sequential(nn.Linear(3, 2)), section)
    with pytest.raises(UserError, match="single layer"):
        scl(section, single)
