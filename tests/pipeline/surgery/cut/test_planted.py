"""A network that is masked to a known ticket is cut to exactly the ticket's widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.surgery import shrink
from tests.pipeline.surgery.cut.planted import (
    LAYERS,
    SIDES,
    TICKET,
    TICKETS,
    WEIGHTS,
    accuracy,
    planted,
    samples,
    ticket,
    widths,
)

EXAMPLE = (torch.rand(3, 2),)


@pytest.mark.parametrize("task", TICKETS)
def test_the_ticket_alone_solves_its_task(task: str) -> None:
    layers = ticket(task)
    assert tuple(len(bias) for _, bias in layers[:-1]) == TICKETS[task]
    assert sum(int((weight != 0).sum()) for weight, _ in layers) == WEIGHTS[task]
    x, y = samples(task, 500)
    for weight, bias in layers[:-1]:
        x = (x @ weight.T + bias).relu()
    outputs = x @ layers[-1][0].T + layers[-1][1]
    if task == "circle":
        assert float((outputs.argmax(1) == y).float().mean()) > 0.98
    else:
        assert float((outputs - y).abs().max()) < {"relu": 1e-6, "helix": 0.055}[task]


@pytest.mark.parametrize("constants_are_read", [False, True])
@pytest.mark.parametrize(("task", "seed"), [("circle", 0), ("circle", 1), ("relu", 0), ("helix", 0)])
def test_the_mask_of_the_ticket_leaves_its_widths(task: str, seed: int, constants_are_read: bool) -> None:
    network, masks = planted(noise=1.0, seed=seed, task=task)
    assert sum(int(mask.sum()) for mask in masks.values()) == WEIGHTS[task]
    alive = torch.ones(SIDES[task][0], dtype=torch.bool)  # of the units before a layer
    with torch.no_grad():
        for path in LAYERS:
            layer = network.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            mask = masks[f"{path}.weight"]
            if constants_are_read:
                mask = mask | ~alive  # what has no input is a constant, and may be read anywhere
            alive = masks[f"{path}.weight"].any(1)
            layer.weight.mul_(mask)
    x, _ = samples(task, 64)
    compact = shrink(network, (x[:3],))
    assert widths(compact.model) == TICKETS[task]
    assert torch.allclose(compact.model(x), network(x), atol=1e-4)
    assert compact.certificate["law"]["max_rel_diff"] < 1e-9
    if not constants_are_read:
        assert accuracy(compact.model, task=task) > 0.98


def test_one_weight_more_is_one_unit_more() -> None:
    network, masks = planted(noise=1.0)
    first, second = network.get_submodule("0"), network.get_submodule("2")
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    unit = int((~masks["0.weight"].any(1)).nonzero()[0])
    masks["0.weight"][unit, 0] = True
    masks["2.weight"][int(masks["2.weight"].any(1).nonzero()[0]), unit] = True
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    assert widths(shrink(network, EXAMPLE).model) == (TICKET[0] + 1, *TICKET[1:])
    assert widths(network) == (100, 100, 100)
