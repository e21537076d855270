"""Masks: densities by hand, and what rides with a network through a removal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.training.compute import Compute
from pipeline.training.hooks import Hooks
from pipeline.training.masks import Masks, erk_counts, in_scope, largest, uniform_counts
from pipeline.training.sparsifier import Sparsifier
from runtime.errors import UserError
from tests.pipeline.training.small import SmallNet, joining_test_split, state

SHAPES = {"a": torch.Size((8, 4, 3, 3)), "b": torch.Size((10, 8))}  # sides of both: 18; sizes: 288 and 80


def test_erk_gives_both_layers_the_same_count_until_one_is_full() -> None:
    assert erk_counts(SHAPES, 0.25) == {"a": 46, "b": 46}
    assert erk_counts(SHAPES, 0.5) == {"a": 104, "b": 80}
    assert erk_counts(SHAPES, 0.25, dense=["b"]) == {"a": 12, "b": 80}
    with pytest.raises(UserError, match="and b alone are more"):
        erk_counts(SHAPES, 0.2, dense=["b"])


def test_uniform_is_the_same_share_and_at_least_one() -> None:
    assert uniform_counts(SHAPES, 0.5) == {"a": 144, "b": 40}
    assert uniform_counts(SHAPES, 0.001, dense=["b"]) == {"a": 1, "b": 80}


def test_the_largest_are_exactly_so_many_also_among_equals() -> None:
    assert largest(torch.tensor([1.0, 1.0, 1.0, 0.0]), 2).tolist() == [True, True, False, False]
    assert largest(torch.tensor([[0.0, 3.0], [2.0, 1.0]]), 3).tolist() == [[False, True], [True, True]]


def test_a_shared_weight_is_in_scope_once_and_a_frozen_one_not() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    network = nn.Sequential(first, second, first, nn.BatchNorm1d(3))
    assert list(in_scope(network)) == ["0.weight", "1.weight"]
    second.weight.requires_grad_(False)
    assert list(in_scope(network)) == ["0.weight"]


@torch.no_grad()
def kill(network: SmallNet) -> None:
    """The second channel of the first convolution."""
    for name in ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"):
        network.get_parameter(name)[1] = 0


def test_masks_hold_weights_and_moments_and_are_cut_with_the_network() -> None:
    from pipeline import config

    section = config.sparse_of(epochs=1)
    training = joining_test_split(section, 4)
    network = training.network
    assert isinstance(network, SmallNet)
    kill(network)
    keep = torch.ones(3, 4, 3, 3, dtype=torch.bool)
    keep[0, 2] = False
    masks = Masks({"conv2.weight": keep})
    own = Sparsifier(network, state(network).optimizer, Hooks(masks=masks), training, Compute(torch.device("cpu")))
    x = torch.rand(4, 1, 8, 8)
    own.network(x).sum().backward()
    own.state.optimizer.step(0.1)
    own.after_step(True)
    moments = own.state.optimizer.inner.state[network.conv2.weight]["momentum_buffer"]
    assert not network.conv2.weight[0, 2].any() and not moments[0, 2].any() and moments[1].any()
    kill(network)
    after, _ = own._cut(
        {"relu1": torch.tensor([False, True, False, False]), "relu2": torch.zeros(3, dtype=torch.bool)}, (x,)
    )
    cut = dict(after.network.named_parameters())["conv2.weight"]
    assert masks.values["conv2.weight"].shape == cut.shape == (3, 3, 3, 3)
    assert not masks.values["conv2.weight"][0, 1].any() and masks.living == 9 * 9 - 9
