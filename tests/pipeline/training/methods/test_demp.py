"""DemP's penalty, noise and censuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.training.methods.demp import Demp
from pipeline.training.methods.noise import Noise
from pipeline.training.steering.demands import batch_norm_scales
from runtime.errors import UserError
from tests.pipeline.training.small import SmallNet, SmallUnits, joining_test_split, state, verdict


def made(section: Any = None, total_steps: int = 100) -> tuple[SmallNet, Demp]:
    torch.manual_seed(0)
    model = SmallNet()
    section = section or config.sparse_of(lambda_peak=0.5, sigma_peak=0.01)
    if section.epochs == 40:
        section = section.model_copy(update={"epochs": 20})
    method = Demp(section, joining_test_split(section, -(-total_steps // section.epochs)))
    method.begin(state(model))
    return model, method


def test_the_penalty_is_lambda_times_the_sum_of_scales_and_its_gradient_their_sign() -> None:
    model, method = made()
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5]))
        model.bn2.weight.copy_(torch.tensor([-1.0, 3.0, 0.25]))
    term = method.penalty(30)
    assert term is not None
    assert term.item() == pytest.approx(0.5 * 7.75)
    torch.autograd.backward(term)
    assert model.bn1.weight.grad is not None
    assert model.bn2.weight.grad is not None
    assert model.bn1.weight.grad.tolist() == [0.5, -0.5, 0.0, 0.5]
    assert model.bn2.weight.grad.tolist() == [-0.5, 0.5, 0.5]
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["bn1.weight", "bn2.weight"]


def test_lambda_follows_the_one_cycle_over_the_span() -> None:
    model, method = made(config.sparse_of(lambda_peak=0.5, span=0.5), total_steps=200)
    scales = sum(float(s.detach().abs().sum()) for s in batch_norm_scales(model))
    for step, expected in ((0, 0.02), (30, 0.5), (100, 2e-6), (199, 2e-6)):
        term = method.penalty(step)
        assert term is not None
        assert term.item() == pytest.approx(expected * scales, rel=1e-5)


def test_without_lambda_there_is_no_term_and_without_sigma_no_noise() -> None:
    model, method = made(config.sparse_of(lambda_peak=0.0))
    assert method.penalty(30) is None
    model, method = made(config.sparse_of(sigma_peak=0.0))
    before = [p.detach().clone() for p in model.parameters()]
    method.after_step(30)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_noise_has_the_scheduled_deviation_and_follows_from_the_step() -> None:
    model = nn.Linear(200, 200)
    before = model.weight.detach().clone()
    noise = Noise(model)
    noise.add(0.5, seed=7)
    first = model.weight.detach() - before
    assert first.std().item() == pytest.approx(0.5, rel=0.02)
    assert first.mean().item() == pytest.approx(0.0, abs=0.02)
    with torch.no_grad():
        model.weight.copy_(before)
    noise.add(0.5, seed=7)
    assert torch.equal(model.weight.detach() - before, first)
    noise.add(0.5, seed=8)
    assert not torch.allclose(model.weight.detach() - before, 2 * first)


def test_sigma_follows_the_same_one_cycle() -> None:
    model, method = made(config.sparse_of(sigma_peak=0.01))
    moved = []
    for step in (0, 30, 100):
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        method.after_step(step)
        moved.append(float((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).std()))
    assert moved == pytest.approx([0.0004, 0.01, 4e-8], rel=0.25, abs=2e-8)
    assert moved[2] < moved[0] < moved[1]


def test_every_step_has_its_own_noise() -> None:
    model, method = made()
    drawn = []
    for step in (30, 30, 31):
        before = model.conv2.weight.detach().clone()
        method.after_step(step)
        drawn.append(model.conv2.weight.detach() - before)
    assert torch.allclose(drawn[0], drawn[1], atol=1e-6)
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-3)


def test_noise_leaves_exactly_the_dead_channels_untouched() -> None:
    model, _ = made()
    noise = Noise(model)
    noise.spare(SmallUnits(model).live_masks(verdict([0, 1, 0, 0], [0, 0, 1])))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    noise.add(0.1, seed=3)
    moved = {name: (p.detach() != before[name]) for name, p in model.named_parameters()}
    assert [bool(c.any()) for c in moved["conv1.weight"]] == [True, False, True, True]
    assert moved["bn1.weight"].tolist() == moved["bn1.bias"].tolist() == [True, False, True, True]
    assert not moved["conv2.weight"][2].any()
    assert not moved["conv2.weight"][:, 1].any()
    assert moved["conv2.weight"][:2, [0, 2, 3]].all()
    assert moved["linear.weight"].tolist() == [[True, True, False]] * 2
    assert moved["linear.bias"].all()
    noise.spare(SmallUnits(model).live_masks(verdict([0] * 4, [0] * 3)))
    noise.add(0.1, seed=4)
    assert all(bool((p.detach() != before[name]).all()) for name, p in model.named_parameters())


def test_an_epoch_ends_with_a_census_at_its_rhythm() -> None:
    model, method = made(config.sparse_of(census_every=7, census_batches=2, census_batch_size=30))
    with torch.no_grad():
        model.bn2.weight[0], model.bn2.bias[0] = 0.0, -1.0
    first = method.figures(4)
    assert (first["dead"], first["channels"], first["dead_by_layer"]) == (None, 7, None)
    second = method.figures(30)
    assert (second["dead"], second["dead_by_layer"]) == (1, {"conv1": 0, "conv2": 1})
    assert (second["lambda"], second["sigma"]) == (0.03, 5e-5)
    with torch.no_grad():
        model.bn2.weight[1], model.bn2.bias[1] = 0.0, -1.0
    before = model.bn2.bias.detach().clone()
    method.after_step(30)
    assert (model.bn2.bias.detach() != before).tolist() == [False, True, True]
    with pytest.raises(AssertionError):
        made()[1].last_verdict()
    method.figures(99)
    assert method.last_verdict()["relu2"].tolist() == [True, True, False]


def test_a_census_looks_at_the_asked_number_of_images_and_the_last_epoch_has_one() -> None:
    model, method = made(config.sparse_of(census_batches=2, census_batch_size=30, census_every=7, epochs=10))
    seen: list[int] = []
    model.conv1.register_forward_hook(lambda _m, inputs, _y: seen.append(len(inputs[0])))
    for epoch, images in ((5, 0), (6, 60), (8, 60), (9, 120)):
        method.figures(10 * epoch + 9)
        assert sum(seen) == images
    assert method.last_verdict().keys() == {"relu1", "relu2"}
    assert sum(seen) == 120


def test_a_network_without_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match="no batch norm with a trained scale"):
        batch_norm_scales(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)))
    frozen = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(3))
    frozen[0].weight.requires_grad_(False)
    assert [len(scale) for scale in batch_norm_scales(frozen)] == [3]
