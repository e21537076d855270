"""Several optimizers over one network: each is cut along, and together they train as one with their groups does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import demport
from pipeline.training.optimizer.together import Together
from tests.demport.test_loops import STEPS, X, loss_of, network, started, width

Optimizers = list[torch.optim.Optimizer]


def halves(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Of the layers before, and of the head and the second norm."""
    head = ("4.", "8.")
    named = list(net.named_parameters())
    return [p for n, p in named if not n.startswith(head)], [p for n, p in named if n.startswith(head)]


def two(net: nn.Module) -> Optimizers:
    first, second = halves(net)
    return [torch.optim.AdamW(first, lr=0.02), torch.optim.AdamW(second, lr=0.01)]


def trained(sparse: demport.Sparsifier, steps: int = STEPS, apart: bool = True) -> list[int]:
    """Steps at which channels went; `apart`: each optimizer is stepped by itself."""
    removals = []
    for step in range(steps):
        sparse.optimizer.zero_grad()
        torch.autograd.backward(loss_of(sparse))
        for optimizer in sparse.optimizers if apart else (sparse.optimizer,):
            optimizer.step()
        if sparse.step(X):
            removals.append(step)
    return removals


@pytest.mark.parametrize("apart", [True, False])
def test_two_optimizers_train_as_one_of_two_groups(apart: bool) -> None:
    net = network()
    first, second = halves(net)
    one = started(net, torch.optim.AdamW([{"params": first, "lr": 0.02}, {"params": second, "lr": 0.01}]))
    removals = trained(one)
    both = started(other := network(), two(other))
    assert trained(both, apart=apart) == removals and removals
    assert width(both) == width(one) < 16 and len(both.optimizers) == 2
    for (name, a), (_, b) in zip(one.network.named_parameters(), both.network.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert [g["lr"] for part in both.optimizers for g in part.param_groups] == [0.02, 0.01]
    assert torch.equal(both.finish().model(X), one.finish().model(X))


def test_optimizers_of_two_kinds_keep_their_state_through_a_removal() -> None:
    net = network()
    first, second = halves(net)
    sparse = started(net, [torch.optim.SGD(first, 0.1, momentum=0.9), torch.optim.AdamW(second, 0.02)])
    assert trained(sparse)
    backbone, head = sparse.optimizers
    assert isinstance(backbone, torch.optim.SGD) and isinstance(head, torch.optim.AdamW)
    for optimizer, keys in ((backbone, {"momentum_buffer"}), (head, {"step", "exp_avg", "exp_avg_sq"})):
        for p in optimizer.param_groups[0]["params"]:
            state = {k: v for k, v in optimizer.state[p].items() if not k.startswith("demport_")}
            assert set(state) == keys and all(v.shape == p.shape for k, v in state.items() if k != "step")
    held = [id(p) for optimizer in sparse.optimizers for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(map(id, sparse.network.parameters()))


def test_a_checkpoint_of_several_goes_on_bit_for_bit() -> None:
    whole = started(net := network(), two(net))
    trained(whole)
    part = started(net := network(), two(net))
    removals = trained(part, STEPS // 2)
    saved = copy.deepcopy(part.state_dict())
    again = started(net := network(), two(net))
    again.load_state_dict(saved)
    trained(again, STEPS - STEPS // 2)
    assert removals and len(again.optimizers) == 2
    for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedulers_of_each_follow_and_the_rates_are_theirs() -> None:
    net = network()
    sparse = started(net, two(net))
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 10, 0.5) for one in sparse.optimizers]
    for _ in range(STEPS):
        sparse.optimizer.zero_grad()
        torch.autograd.backward(loss_of(sparse))
        for one in sparse.optimizers:
            one.step()
        if sparse.step(X):
            for scheduler, one in zip(schedulers, sparse.optimizers, strict=True):
                scheduler.optimizer = one
        for scheduler in schedulers:
            scheduler.step()
    rates = [one.param_groups[0]["lr"] for one in sparse.optimizers]
    assert rates == pytest.approx([0.02 / 16, 0.01 / 16])
    assert width(sparse) < 16


def test_what_are_no_optimizers_of_the_network_is_one_line() -> None:
    net = network()
    first, second = halves(net)
    sgd: Any = torch.optim.SGD
    with pytest.raises(demport.UserError, match="two optimizers hold one parameter"):
        started(net, [sgd(first, 0.1), sgd([*second, first[0]], 0.1)])
    with pytest.raises(demport.UserError, match="optimizer is list; an optimizer of torch"):
        started(net, [])
    with pytest.raises(demport.UserError, match="holds no parameter of the network"):
        started(net, [sgd(first, 0.1), sgd(network().parameters(), 0.1)])
    with pytest.raises(TypeError, match="closure"):
        Together([sgd(first, 0.1), sgd(second, 0.1)]).step(lambda: 0.0)
