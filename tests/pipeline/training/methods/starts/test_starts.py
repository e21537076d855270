"""Which weights live from the start: scored, tried, or by how far they move; by hand on a small network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline import config
from pipeline.training.hooks import Hooks
from pipeline.training.masks import in_scope
from pipeline.training.methods.starts.dissipating import dissipating
from pipeline.training.methods.starts.kstarts import KStarts
from pipeline.training.methods.starts.kstarts_dissipating import kstarts_dissipating
from pipeline.training.methods.starts.snip import connection_sensitivity
from runtime.errors import UserError
from tests.pipeline.training.methods.weights.begun import begun
from tests.pipeline.training.small import SmallNet, joining, joining_test_split


def test_snip_scores_are_weight_times_gradient() -> None:
    section = config.sparse_of(method="snip", density=0.5, epochs=2)
    training = joining(section, loss=lambda outputs, y: F.cross_entropy(outputs, y % 2))
    scores = connection_sensitivity(training, 1, 32)
    network = training.network
    assert network.training
    network.eval()
    assert training.labelled is not None and training.loss is not None
    ((inputs, y),) = training.labelled(0, 1, 32)
    torch.autograd.backward(training.loss(network(*inputs), y))
    for name, weight in in_scope(network).items():
        assert weight.grad is not None
        assert torch.allclose(scores[name], (weight * weight.grad).abs(), rtol=1e-4, atol=1e-9)


def test_dissipating_meets_the_density_after_its_epochs_and_takes_what_moved_least() -> None:
    section = config.sparse_of(method="dissipating", density=0.25, epochs_of_removal=2, epochs=4, weight_decay=0.0)
    training = joining_test_split(section, 5)
    method = dissipating(section, training)
    assert method.masks is not None
    begun(method, training.network)
    weight = in_scope(training.network)["conv2.weight"]
    first = method.carried["start"]["conv2.weight"]
    with torch.no_grad():
        weight.copy_(first * (1 + torch.arange(weight.numel()).view_as(weight) / 1000))
    method.after_step(4, True)
    mask = method.masks.values["conv2.weight"].flatten()
    assert int(mask.sum()) == 27 + 40  # half of the 81 that have to go, rounded down
    assert mask.tolist() == sorted(mask.tolist())  # those that moved least came first
    method.after_step(9, True)
    assert int(method.masks.values["conv2.weight"].sum()) == 27
    method.after_step(14, True)
    assert int(method.masks.values["conv2.weight"].sum()) == 27


def test_kstarts_goes_on_with_the_fittest_mask_where_its_try_ended() -> None:
    section = config.sparse_of(method="kstarts", starts=3, density=0.5, epochs=4)
    training = joining_test_split(section, 2)
    method = KStarts(section, training)
    network = training.network
    assert isinstance(network, SmallNet)
    begun(Hooks(begin=method.begin, masks=method.masks), network)
    assert method.steps == 3 * 2 + 8 - 2
    assert [method.position(step) for step in range(8)] == [0, 1, 0, 1, 0, 1, 2, 3]
    first = network.conv1.weight.detach().clone()
    masks = []
    for number, size in enumerate((1.0, 3.0, 2.0)):
        masks.append(method.masks.values["conv2.weight"].clone())
        with torch.no_grad():
            for weight in in_scope(network).values():
                weight.fill_(size)
        method.masks.apply()
        method.after_step(2 * number + 1, True)
        if number < 2:
            assert torch.equal(network.conv1.weight, first * method.masks.values["conv1.weight"])
    assert torch.equal(method.masks.values["conv2.weight"], masks[1])
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(network.conv2.weight, 3.0 * masks[1])


def test_both_combined_try_masks_of_half_the_logarithm_and_meet_the_density_in_the_winner() -> None:
    keys = {"density": 0.25, "distribution": "uniform", "starts": 2, "epochs_of_removal": 2, "epochs": 6}
    section = config.sparse_of(method="kstarts_dissipating", lr=0.5, schedule="constant", **keys)
    training = joining_test_split(section, 3)
    hooks = kstarts_dissipating(section, training)
    assert hooks.masks is not None and hooks.steps == 2 * 3 + 18 - 3
    network = training.network
    assert isinstance(network, SmallNet)
    begun(hooks, network)
    first = hooks.carried["start"]["conv2.weight"].clone()
    counts = []
    for step in range(hooks.steps):
        if step == 5:  # the second try is the fitter one
            with torch.no_grad():
                network.conv2.weight.mul_(9)
        if step == 8:
            with torch.no_grad():  # the further back in memory, the further it moved
                start = hooks.carried["start"]["conv2.weight"]
                by = torch.arange(108.0).view_as(start) / 100
                network.conv2.weight.copy_(start * (1 + by) * hooks.masks.values["conv2.weight"])
                living = hooks.masks.values["conv2.weight"].flatten().nonzero().flatten()
        hooks.after_step(step, True)
        counts.append(int(hooks.masks.values["conv2.weight"].sum()))
    assert counts == [54] * 8 + [41] * 3 + [27] * 10  # a half is the root of a quarter
    assert int(hooks.masks.values["linear.weight"].sum()) == round(0.25 * 6)
    last = hooks.masks.values["conv2.weight"].flatten().nonzero().flatten()
    assert set(last.tolist()) <= set(living[-41:].tolist())
    assert hooks.figures(5)["winner"] == 1
    decayed = first * (1 - 0.5 * 5e-4) ** 18  # of the 21 steps 3 were a try that lost
    assert torch.allclose(hooks.carried["start"]["conv2.weight"], decayed, rtol=1e-5)


def test_a_training_without_epochs_for_tries_and_removals_is_refused() -> None:
    section = config.sparse_of(method="kstarts_dissipating", epochs=6, density=0.3)
    with pytest.raises(UserError, match=r"take 6 epochs.*raise sparse\.epochs"):
        kstarts_dissipating(section, joining_test_split(section, 3))
