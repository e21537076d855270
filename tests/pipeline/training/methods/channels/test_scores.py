"""How much channels matter: by hand on a small network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.training.methods.channels.group_norm import shrink_weak, tied_norms
from pipeline.training.methods.channels.hesso import salience
from pipeline.training.methods.channels.magnitude import norms, relative
from pipeline.training.methods.channels.slimming import mean_scales
from tests.pipeline.training.methods.channels.begun import begun, by_layer, channels, filled, small


def test_magnitude_is_the_norm_of_what_makes_a_channel() -> None:
    network = small()
    filled(network.conv1.weight, [1, -2, 3, 0])
    filled(network.conv2.weight, [1, 2, -3])
    of = channels(network)
    assert by_layer(norms(of, "l1"), of, "conv1") == [9, 18, 27, 0]
    assert by_layer(norms(of, "l2"), of, "conv1") == pytest.approx([3, 6, 9, 0])
    assert by_layer(relative(norms(of, "l1"), of), of, "conv1") == pytest.approx([2 / 3, 4 / 3, 2, 0])
    assert by_layer(relative(norms(of, "l1"), of), of, "conv2") == pytest.approx([0.5, 1, 1.5])


def test_slimming_goes_by_gamma_and_its_penalty_ends_with_the_cut() -> None:
    network, hooks, _ = begun("slimming", 10, strength=0.5, target={"channels": 0.7, "reached_at": 0.6})
    filled(network.bn1.weight, [1, -0.2, 3, 0.1])
    filled(network.bn2.weight, [-1, 0.5, 2])
    of = channels(network)
    assert by_layer(mean_scales(of), of, "conv1") == pytest.approx([1, 0.2, 3, 0.1])
    term = hooks.penalty(5)
    assert term is not None
    assert term.item() == pytest.approx(0.5 * 7.8)
    assert hooks.penalty(6) is None
    assert [step for step in range(10) if hooks.due(step)] == [5]
    hooks.dead(5)
    assert (network.bn1.weight == 0).tolist() == [False, True, False, True]
    assert (network.bn2.weight == 0).tolist() == [False, False, False]


def test_group_norm_counts_rows_columns_norms_and_biases_and_shrinks_the_weak_most() -> None:
    network = small()
    for parameter in network.parameters():
        filled(parameter, [1] * len(parameter))
    filled(network.bn1.weight, [1, 2, 3, 4])
    of = channels(network)
    rest = 9 + 1 + 1 + 3 * 9  # conv1's row, its bias, the norm's shift, conv2's columns
    expected = [math.sqrt(rest + k * k) for k in (1, 2, 3, 4)]
    assert by_layer(tied_norms(of).numpy(), of, "conv1") == pytest.approx(expected)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    shrink_weak(of, 0.5)
    weights = [0.5 * 2 ** (4 * (expected[3] - e) / (expected[3] - expected[0])) for e in expected]
    assert weights[0] == pytest.approx(8)
    assert network.conv1.weight.grad is not None
    assert network.conv1.weight.grad[:, 0, 1, 1].tolist() == pytest.approx(weights)
    assert network.bn1.weight.grad is not None
    assert network.bn1.weight.grad.tolist() == pytest.approx(
        [k * w for k, w in zip((1, 2, 3, 4), weights, strict=True)]
    )
    assert network.conv2.weight.grad is not None
    assert network.conv2.weight.grad[0, :, 0, 0].tolist() == pytest.approx([w + 0.5 for w in weights])
    assert network.linear.bias.grad is not None
    assert not network.linear.bias.grad.any(), "outputs stay"


def test_taylor_is_the_mean_square_of_what_the_loss_would_change() -> None:
    network, hooks, _ = begun("taylor", 10, rounds=1, target={"channels": 0.9, "floor": 0.0})
    filled(network.bn1.weight, [1, 2, 1, 1])
    for gradient in ([1.0, 0.0, 3.0, 0.1], [-1.0, 1.0, 1.0, 0.3]):
        network.bn1.weight.grad = torch.tensor(gradient)
        network.bn2.weight.grad = torch.full((3,), 5.0)
        hooks.after_backward(0)
    tensors, document = hooks.state()
    assert tensors["first|conv1.weight"].tolist() == pytest.approx([2, 4, 10, 0.1])
    assert document == {"steps": 2}
    hooks.dead(4)
    assert (network.bn1.weight == 0).tolist() == [False, False, False, True]
    assert (network.bn2.weight == 0).tolist() == [False, False, False]


def test_hesso_means_five_terms_each_over_its_norm() -> None:
    size, entries = np.array([3.0, 4.0]), np.array([9.0, 4.0])
    assert salience(size, entries).tolist() == pytest.approx(
        [(0.6 + 1 / math.hypot(1, 2)) / 2, (0.8 + 2 / math.hypot(1, 2)) / 2]
    )
    five = salience(size, entries, product=np.array([3.0, -4.0]), slope=np.array([1.0, 1.0]))
    cosine = [0.0, 1.0]  # descent pushes the first towards 0, the second away from it
    rest = [0.6 + 1 / math.sqrt(5) + 0.6 + 9 / math.hypot(9, 16), 0.8 + 2 / math.sqrt(5) + 0.8 + 16 / math.hypot(9, 16)]
    assert five.tolist() == pytest.approx([(c + r) / 5 for c, r in zip(cosine, rest, strict=True)])


def test_random_follows_from_seed_and_step() -> None:
    chosen = []
    for _ in range(2):
        network, hooks, _ = begun("random", 10, target={"channels": 0.5})
        hooks.dead(4)
        chosen.append([*(network.bn1.weight == 0).tolist(), *(network.bn2.weight == 0).tolist()])
    assert chosen[0] == chosen[1]
    assert sum(chosen[0]) in (3, 4)
