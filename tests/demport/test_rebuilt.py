"""Methods that train another network for a while, in a loop of one's own: it goes on bit for bit, and each step is seen
once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import demport
from pipeline import config
from pipeline.models import build
from tests.pipeline.training.small import SHAPE

CASES: dict[str, tuple[config.Model, dict[str, Any]]] = {
    "truly_sparse": (config.Model(name="mlp:relu", args={"widths": [24, 20]}), {"density": 0.2, "prune_units": 0.1}),
    "east": (config.Model(args={"width": 4, "blocks": 3}), {"density": 0.1, "every": 4, "cycle_every": 3}),
}
STEPS = 40


def joined(method: str) -> demport.Sparsifier:
    model, options = CASES[method]
    torch.manual_seed(0)
    network: nn.Module = build(model, num_classes=10, input_shape=SHAPE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    example = (torch.zeros(4, *SHAPE),)
    return demport.sparsify(network, optimizer, example, method=method, steps=STEPS, options=options)


def trained(sparse: demport.Sparsifier, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.rand(16, *SHAPE, generator=generator), torch.randint(10, (16,), generator=generator)
        sparse.optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(sparse.network(x), y) + sparse.penalty())
        sparse.optimizer.step()
        sparse.step(x)


@pytest.mark.parametrize("method", CASES)
def test_it_goes_on_bit_for_bit_and_ends_as_the_plain_network(method: str) -> None:
    whole, plain = joined(method), build(CASES[method][0], num_classes=10, input_shape=SHAPE)
    names = [name for name, _ in plain.named_parameters()]
    trained(whole, 0, 25)
    state = whole.state_dict()
    assert [name for name, _ in whole.network.named_parameters()] != names
    assert len(whole.optimizer._optimizer_step_pre_hooks) == 1
    again = joined(method)
    again.load_state_dict(state)
    for sparse in (whole, again):
        trained(sparse, 25, STEPS)
    assert [name for name, _ in whole.network.named_parameters()] == names
    pairs = zip(whole.network.state_dict().values(), again.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    compact = whole.finish()
    x = torch.rand(3, *SHAPE)
    assert torch.allclose(compact.model.eval()(x), whole.network.eval()(x), atol=1e-4)
