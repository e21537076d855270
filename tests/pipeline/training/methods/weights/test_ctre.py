"""Which places CTRE takes, by hand, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.training.masks import Masks
from pipeline.training.methods.weights.ctre import chain_of, ctre, rewire, similarities
from runtime.errors import UserError
from tests.pipeline.training.small import SHAPE, SmallNet, chain, joining_test_split, state

EXAMPLE = (torch.zeros(2, *SHAPE),)


def masked(weight: list[list[float]]) -> tuple[nn.Linear, Masks]:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    masks = Masks({"weight": layer.weight != 0})
    masks.bind(state(layer))
    return layer, masks


def test_weights_move_to_the_most_similar_units_and_one_that_was_dropped_is_replaced_at_random() -> None:
    layer, masks = masked([[0.1, 2.0, 0, 0], [0, 3.0, 0.2, 0]])
    similar = torch.tensor([[0.9, 1.0, 0.1, 0.2], [0.3, 0.0, 0.4, 0.8]])  # of the free places 0,0 and 1,3 are best
    places = torch.tensor([[0.9, 0.0, 0.5, 0.1], [0.2, 0.0, 0.9, 0.3]])
    draws = [torch.zeros(2, 4), places, torch.ones(2, 4)]
    rewire(masks, "weight", draws, similar, 0.5)
    assert masks.values["weight"].tolist() == [[False, True, True, False], [False, True, False, True]]
    limit = (6 / 4) ** 0.5
    assert layer.weight.flatten().tolist() == pytest.approx([0, 2.0, limit, 0, 0, 3.0, 0, limit])
    layer, masks = masked([[0.1, 2.0, 0, 0], [0, 3.0, 0.2, 0]])
    rewire(masks, "weight", draws, None, 0.5)
    assert masks.values["weight"].tolist() == [[False, True, True, False], [False, True, False, True]]
    assert masks.living == 4


def test_similarity_is_the_cosine_of_activations_over_the_training_set() -> None:
    section = config.sparse_of(method="ctre", epochs=2)
    training = joining_test_split(section, 2)
    network = chain(10, SHAPE)
    similar = similarities(network, ["1", "3", "5"], training, 0)
    batches = [x for (x,) in training.samples(0, 1000, 512)]
    with torch.no_grad():
        layers: list[nn.Module] = list(network.children())
        hidden = torch.cat([layers[2](layers[1](layers[0](x))) for x in batches])
        outputs = torch.cat([network(x).softmax(1) for x in batches])
        second = layers[4](layers[3](hidden))
    expected = nn.functional.cosine_similarity(second.T[:, None], hidden.T[None], dim=2).abs()
    assert torch.allclose(similar["3.weight"], expected, atol=1e-5)
    last = nn.functional.cosine_similarity(outputs.T[:, None], second.T[None], dim=2).abs()
    assert torch.allclose(similar["5.weight"], last, atol=1e-5)
    assert network.training


def test_networks_that_are_no_chain_of_linear_layers_are_refused() -> None:
    assert chain_of(chain(10, SHAPE), EXAMPLE) == ["1", "3", "5"]
    normed = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(UserError, match=r"conv1 is of another kind; an MLP"):
        chain_of(SmallNet(), EXAMPLE)
    with pytest.raises(UserError, match="2 is of another kind"):
        chain_of(normed, EXAMPLE)
    section = config.sparse_of(method="ctre", density=0.0001)
    training = dataclasses.replace(joining_test_split(section, 2), first=lambda: chain(10, SHAPE))
    with pytest.raises(UserError, match="less than one weight"):
        ctre(section, training)
