"""A ticket that is planted in a network (arXiv 2111.11153) is what pruning by size leaves, and surgery cuts to it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipeline import config
from pipeline.surgery import shrink
from pipeline.training.methods.rounds.imp import imp
from tests.pipeline.surgery.cut.planted import TICKET, accuracy, planted, widths
from tests.pipeline.training.small import joining_test_split, state


@pytest.mark.parametrize("rounds", [1, 4])
def test_imp_leaves_the_ticket_and_surgery_its_widths(rounds: int) -> None:
    network, masks = planted(noise=0.02)
    density = 108 / sum(mask.numel() for mask in masks.values())
    section = config.sparse_of(method="imp", density=density, rounds=rounds, retrain_epochs=rounds, epochs=2)
    training = dataclasses.replace(joining_test_split(section, 2), first=lambda: network)
    hooks = imp(section, training)
    assert hooks.masks is not None and hooks.steps == 4 + 2 * rounds
    own = state(network)
    hooks.masks.bind(own)
    hooks.begin(own)
    for step in range(3, hooks.steps):
        hooks.between(step)
    assert all(torch.equal(mask, hooks.masks.values[name]) for name, mask in masks.items())
    compact = shrink(network, (torch.rand(3, 2),))
    assert widths(compact.model) == TICKET
    assert accuracy(compact.model) > 0.95
