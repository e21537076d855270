"""Plant 'n' Seek (arXiv 2111.11153) with every method that masks weights: a network that carries a known ticket and is
masked to it keeps to it while it trains, and is cut to exactly the ticket's widths."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.config.sparse import function_of
from pipeline.surgery import shrink
from pipeline.training.compute import Compute
from pipeline.training.hooks import Training
from pipeline.training.methods import METHODS
from pipeline.training.methods.truly_sparse.connections import SparseLinear
from pipeline.training.methods.truly_sparse.evolution import rearrange
from pipeline.training.optimizer import optimizer_for
from pipeline.training.sparsifier import Sparsifier
from tests.pipeline.surgery.cut.planted import TICKETS, accuracy, planted, samples, widths
from tests.pipeline.training.small import joining_test_split

ROUNDS = {"han", "lottery_ticket", "imp", "bimp", "nnrelief"}
OPTIONS: dict[str, dict[str, Any]] = {
    "east": {"density": 0.3, "dyrelu": "none"}, "snip": {"density": 0.3}, "chase": {"density": 0.3},
    **{m: {"density": 0.3} for m in ("rigl", "set", "srigl", "ctre", "static_erk", "static_uniform", "kstarts")},
    "dissipating": {"density": 0.3}, "kstarts_dissipating": {"density": 0.3}, **{m: {} for m in ROUNDS},
}  # fmt: skip
STEPS = 3
"""Of training, before any of the methods changes its masks."""


def training_for(task: str, network: nn.Module, section: Any) -> tuple[Training, Tensor, Tensor]:
    x, y = samples(task, 256)
    loss = F.cross_entropy if task == "circle" else F.mse_loss
    training = dataclasses.replace(
        joining_test_split(section, 5), first=lambda: network, example=(x[:2],), loss=loss,
        samples=lambda *_: iter([(x,)]), labelled=lambda *_: iter([((x,), y)]),
    )  # fmt: skip
    return training, x, y


def begun(method: str, task: str) -> tuple[Sparsifier, dict[str, Tensor], Tensor, Tensor, Any]:
    network, masks = planted(noise=1.0, task=task)
    values = {name: network.get_parameter(name).detach().clone() for name in masks}
    keys = {"epochs": 10, "lr": 1e-4, "schedule": "constant", "weight_decay": 1.0, **OPTIONS.get(method, {})}
    section = config.sparse_of(method=method, **keys)
    training, x, y = training_for(task, network, section)
    hooks = function_of(method)(section, training)
    optimizer = optimizer_for(section, list(network.parameters()))
    own = Sparsifier(network, optimizer, hooks, training, Compute(torch.device("cpu")))
    assert own.hooks.masks is not None
    own.hooks.masks.values.update({name: mask.clone() for name, mask in masks.items()})
    with torch.no_grad():
        for name, value in values.items():  # which the method's own masks have cut into
            own.network.get_parameter(name).copy_(value)
    own.hooks.masks.apply()
    return own, masks, x, y, training.loss


def steps_of(own: Sparsifier, x: Tensor, y: Tensor, loss: Any) -> None:
    for _ in range(STEPS):
        own.train_mode()
        own.state.optimizer.zero_grad()
        torch.autograd.backward(loss(own.network(x), y))
        own.after_step(own.state.optimizer.step(own.rate(), None, lambda: own.hooks.after_backward(own.step_number)))
        own.advance((x,))
    own.network.eval()


@pytest.mark.parametrize("task", TICKETS)
@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_what_is_masked_to_the_ticket_keeps_to_it_and_is_cut_to_its_widths(method: str, task: str) -> None:
    own, masks, x, y, loss = begun(method, task)
    before = own.network.get_parameter("2.weight").clone()
    steps_of(own, x, y, loss)
    weights = {name: own.network.get_parameter(name) for name in masks}
    assert not any(bool(weights[name][~mask].any()) for name, mask in masks.items())
    assert not torch.equal(before, weights["2.weight"])
    compact = shrink(own.network, (x[:3],))
    assert widths(compact.model) == TICKETS[task]
    assert torch.allclose(compact.model(x), own.network(x), atol=1e-4)
    assert accuracy(compact.model, task=task) > 0.9


@pytest.mark.parametrize("task", TICKETS)
def test_connections_of_the_ticket_alone_are_cut_to_its_widths(task: str) -> None:
    network, masks = planted(noise=1.0, task=task)
    values = {name: network.get_parameter(name).detach().clone() for name in masks}
    section = config.sparse_of(method="truly_sparse", density=0.3, epochs=10)
    training, x, _ = training_for(task, network, section)
    hooks = function_of("truly_sparse")(section, training)
    sparse = hooks.build(network, 0)
    for path, layer in [(path, m) for path, m in sparse.named_modules() if isinstance(m, SparseLinear)]:
        mask, weight = masks[f"{path}.weight"].flatten(), values[f"{path}.weight"].flatten()
        none = torch.zeros(layer.living, dtype=torch.bool)
        rearrange(layer, none, [], mask.nonzero().flatten(), weight[mask])
    plain = hooks.build(sparse, training.steps).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_parameter(name).mul_(mask)  # of layers that stayed dense
    compact = shrink(plain, (x[:3],))
    assert widths(compact.model) == TICKETS[task]
    assert accuracy(compact.model, task=task) > 0.98


@pytest.mark.parametrize("task", TICKETS)
def test_connectivity_that_is_the_ticket_is_cut_to_its_widths(task: str) -> None:
    network, masks = planted(noise=1.0, task=task)
    section = config.sparse_of(method="scl", epochs=10, grain="weight")
    training, x, _ = training_for(task, network, section)
    hooks = function_of("scl")(section, training)
    optimizer = optimizer_for(section, list(network.parameters()))
    own = Sparsifier(network, optimizer, hooks, training, Compute(torch.device("cpu")))
    for name, connectivity in hooks.carried["connectivity"].items():
        connectivity.copy_(torch.where(masks[name], 1.0, -1.0))
    hooks.load({}, {"flips": 0})
    assert not own.network.get_parameter("2.weight")[~masks["2.weight"]].any()
    last = own.network.get_parameter("6.weight")  # the classifier is no part of it, and reads constants then
    compact = shrink(own.network.eval(), (x[:3],))
    assert last.all() and widths(compact.model) == TICKETS[task]
    assert torch.allclose(compact.model(x), own.network(x), atol=1e-4)


def test_every_method_with_masks_is_among_them() -> None:
    """`sr_ste` apart, whose masks have a pattern that no ticket has."""
    apart = {
        "demp", "slimming", "group_norm", "hesso", "taylor", "magnitude", "random", "ispasp", "targeted_dropout",
        "snap", "crop", "earlycrop", "variational", "sr_ste",
    }  # fmt: skip
    assert METHODS.keys() == OPTIONS.keys() | apart | {"truly_sparse", "scl"}
    assert not OPTIONS.keys() & apart
