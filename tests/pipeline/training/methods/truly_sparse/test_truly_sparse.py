"""Connections stored alone compute what a dense layer with zeros does, move as SET says, and are refused by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.models import build
from pipeline.surgery import shrink
from pipeline.training.methods.truly_sparse.connections import SparseLinear, free_places
from pipeline.training.methods.truly_sparse.evolution import evolve, give_up
from pipeline.training.methods.truly_sparse.truly_sparse import truly_sparse
from runtime.errors import UserError
from runtime.macs import macs_of
from tests.pipeline.training.small import SHAPE, SmallNet, chain, joining_test_split, state


def layer_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> SparseLinear:
    keys = (weight.flatten() != 0).nonzero().flatten()
    return SparseLinear(weight.shape[1], weight.shape[0], keys, weight.flatten()[keys], bias)


def test_product_and_gradients_are_those_of_the_dense_layer_at_the_connections() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 11) * (torch.rand(7, 11) < 0.3)
    weight[2] = 0  # a unit without inputs, and an input that nobody reads
    weight[:, 5] = 0
    sparse, bias = layer_of(weight, torch.randn(7)), None
    dense = sparse.dense()
    assert torch.equal(dense.weight, weight) and bias is None
    x, delta = torch.randn(4, 11), torch.randn(4, 7)
    x_dense, x_sparse = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = sparse(x_sparse)
    assert torch.allclose(outputs, dense(x_dense), atol=1e-6)
    torch.autograd.backward(outputs, delta)
    torch.autograd.backward(dense(x_dense), delta)
    assert x_sparse.grad is not None and x_dense.grad is not None
    assert torch.allclose(x_sparse.grad, x_dense.grad, atol=1e-6)
    assert sparse.values.grad is not None and dense.weight.grad is not None
    assert torch.allclose(sparse.values.grad, dense.weight.grad[weight != 0], atol=1e-5)
    assert macs_of(sparse, (x,)) == int((weight != 0).sum())


def test_evolution_moves_the_share_nearest_0_of_each_sign_to_free_places_and_keeps_moments() -> None:
    weight = torch.tensor([[1.0, -1.0, 0, 0], [0.1, 0, 2.0, -0.2]])
    layer = layer_of(weight)
    momentum = torch.arange(1.0, 7.0)  # of 1, -1, 0.1, 2, -0.2 and none
    momentum = momentum[: len(layer.values)]
    evolve(layer, 0.5, [momentum], torch.Generator().manual_seed(3))
    after = layer.dense().weight
    assert layer.living == 5 and len(set(layer.keys.tolist())) == 5
    assert after[0, 0] == 1 and after[0, 1] == -1 and after[1, 2] == 2  # 0.1 of the positive, -0.2 of the negative went
    new = (after != 0) & ~torch.tensor([[True, True, False, False], [False, False, True, False]])
    assert int(new.sum()) == 2 and bool((after[new].abs() <= (6 / 4) ** 0.5).all())
    by_key = dict(zip(layer.keys.tolist(), momentum.tolist(), strict=True))
    assert [by_key[0], by_key[1], by_key[6]] == [1, 2, 4]
    assert all(by_key[int(key)] == 0 for key in new.flatten().nonzero())


def test_units_with_weak_inputs_lose_them_for_good_and_the_room_stays() -> None:
    weight = torch.tensor([[3.0, 0, 1], [0.5, 0, 0], [0, 2.0, 0], [0, 0, 0.25]])
    layer, momentum = layer_of(weight), torch.ones(5)
    assert give_up(layer, 0.5, [momentum]) == 2
    assert layer.closed.tolist() == [False, True, False, True]
    assert layer.dense().weight.tolist() == [[3, 0, 1], [0, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert (layer.living, len(layer.values), momentum.tolist()) == (3, 5, [1, 1, 1, 0, 0])
    for seed in range(5):
        evolve(layer, 0.9, [momentum], torch.Generator().manual_seed(seed))
        assert layer.dense().weight[[1, 3]].abs().sum() == 0
        assert layer.living == 3
    assert give_up(layer, 0.99, [momentum]) == 1  # one unit stays
    other = layer_of(torch.ones(4, 3)[:, :] * torch.tensor([[1.0], [1], [1], [0]]))
    other.load_state_dict({**other.state_dict(), "closed": torch.ones(4, dtype=torch.bool)})
    assert torch.equal(other.dense().weight[3], torch.zeros(3))


def test_free_places_are_distinct_free_and_as_many_as_there_is_room() -> None:
    taken = torch.tensor([0, 3, 4, 9])
    places = free_places(taken, 12, 6, torch.Generator().manual_seed(0))
    assert len(places) == 6 and not set(places.tolist()) & set(taken.tolist())
    assert places.tolist() == sorted(set(places.tolist()))
    assert len(free_places(taken, 12, 99, torch.Generator().manual_seed(0))) == 8
    shut = torch.tensor([True, False, True])  # of 4 inputs each: only 4 to 7 are open, and 4 is taken
    assert free_places(taken, 12, 9, torch.Generator().manual_seed(0), shut, 4).tolist() == [5, 6, 7]
    counts = torch.zeros(10)
    for seed in range(400):
        counts[free_places(torch.zeros(0, dtype=torch.int64), 10, 3, torch.Generator().manual_seed(seed))] += 1
    assert counts.sum() == 1200 and bool(((counts - 120).abs() < 45).all())  # uniform: 120 each, 4 deviations


def test_the_network_holds_no_dense_weight_between_its_first_and_its_last_step() -> None:
    section = config.sparse_of(
        method="truly_sparse", density=0.2, epochs=4, prune_units=0.4, prune_every=1, rewire_last=True
    )
    network = build(config.Model(name="mlp:all_relu", args={"widths": [24, 20]}), num_classes=10, input_shape=SHAPE)
    training = dataclasses.replace(joining_test_split(section, 3), first=lambda: network)
    hooks = truly_sparse(section, training)
    sparse = hooks.build(network, 0)
    largest = max(p.numel() for p in sparse.parameters())
    assert largest < 0.35 * 64 * 24
    assert all(isinstance(network.get_submodule(path), nn.Linear) for path in ("1", "3", "5"))
    own = state(sparse)
    hooks.begin(own)
    for step in range(12):
        hooks.after_step(step, True)
    figures = hooks.figures(11)
    assert figures["units_closed"] > 0 and figures["living_weights"] < 0.2 * (64 * 24 + 24 * 20 + 200)
    plain = hooks.build(sparse, 12)
    assert list(map(type, plain.children())) == list(map(type, network.children()))
    x = torch.rand(5, *SHAPE)
    assert torch.allclose(plain(x), sparse(x), atol=1e-6)
    compact = shrink(plain.eval(), (x,))
    assert torch.allclose(compact.model(x), plain(x), atol=1e-5)
    gone = compact.certificate["channels"]["before"] - compact.certificate["channels"]["after"]
    assert gone >= figures["units_closed"]  # constants fold into what reads them
    assert [hooks.rebuilds(step) for step in (0, 10, 11)] == [False, False, True]


def test_networks_and_sections_that_will_not_do_are_refused() -> None:
    def ask(network: nn.Module, **keys: object) -> None:
        section = config.sparse_of(method="truly_sparse", **{"density": 0.2, "epochs": 4, **keys})
        truly_sparse(section, dataclasses.replace(joining_test_split(section, 3), first=lambda: network))

    with pytest.raises(UserError, match="conv1 is a Conv2d; an MLP"):
        ask(SmallNet())
    with pytest.raises(UserError, match="compile: true"):
        ask(chain(10, SHAPE), compile=True)
    with pytest.raises(UserError, match="less than one weight"):
        ask(chain(10, SHAPE), density=0.0001)
    tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    tied[3].weight = tied[1].weight
    with pytest.raises(UserError, match="3 linear layers share 2 weights"):
        ask(tied)
