"""What the noise of a training may touch, by the masks of live entries; worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pipeline import config
from pipeline.models import demo
from pipeline.surgery import Anatomy
from pipeline.surgery.watch import anatomy
from pipeline.training.methods.demp import Demp
from pipeline.training.methods.noise import Noise
from tests.pipeline.surgery.graphs import grow
from tests.pipeline.surgery.nets import awaken, conv, image, net, pooled
from tests.pipeline.surgery.test_random_graphs import QUICK
from tests.pipeline.surgery.watch.test_ownership import mask, stream, units
from tests.pipeline.training.small import joining_test_split, state

Zeros = Mapping[str, tuple[list[int], list[int]]]  # parameter -> (rows, columns) that are 0


def assert_zeros(model: nn.Module, masks: Mapping[str, Tensor], expected: Zeros) -> None:
    """The masks are 0 just in these rows and columns, and 1 elsewhere, and there is one for each parameter."""
    assert list(masks) == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        full = torch.ones_like(p)
        gone_rows, columns = expected.get(name, ([], []))
        full[gone_rows] = 0
        if columns:
            full[:, columns] = 0
        assert torch.equal(masks[name].expand_as(p), full), name


def test_a_dead_unit_of_a_stream_that_is_alive_elsewhere_is_masked() -> None:
    model = stream()
    traced = anatomy(model, image())
    dead = {"relu_2": mask(4, 1)}
    assert traced.dead_count(dead) == 0  # nothing could be cut
    assert_zeros(model, traced.live_masks(dead), {n: ([1], []) for n in ("conv2.weight", "bn2.weight", "bn2.bias")})
    assert_zeros(model, traced.live_masks({"relu_2": mask(4)}), {})
    assert_zeros(model, traced.live_masks({}), {})


def test_what_a_cut_would_remove_is_masked_too() -> None:
    model = stream()
    dead = {"relu": mask(4, 1, 3), "relu_2": mask(4, 1), "relu_1": mask(5, 0)}
    assert_zeros(model, anatomy(model, image()).live_masks(dead), {
        # channel 1 is dead in the whole stream: with its rows go the columns that read it; 3 is dead in the stem alone
        "stem.weight": ([1, 3], []), "bn0.weight": ([1, 3], []), "bn0.bias": ([1, 3], []),
        "conv2.weight": ([1], [0]), "bn2.weight": ([1], []), "bn2.bias": ([1], []),
        "conv1.weight": ([0], [1]), "bn1.weight": ([0], []), "bn1.bias": ([0], []),
        "conv3.weight": ([], [1]), "skip.weight": ([], [1]),
    })  # fmt: skip


def test_of_a_layer_that_is_dead_as_a_whole_no_row_is_left() -> None:
    model = net(
        lambda m, x: pooled(F.relu(m.conv2(torch.cat([F.relu(m.bn1(m.conv1(x))), x], 1)))),
        conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(7, 3),
    )  # fmt: skip
    with torch.no_grad():
        model.conv1.weight[2] *= 10  # the one that a cut would keep
    traced = anatomy(model, image())
    every = [0, 1, 2, 3]
    expected: Zeros = {n: (every, []) for n in ("conv1.weight", "bn1.weight", "bn1.bias")}
    masks = traced.live_masks({"relu": mask(4, *every), "relu_1": mask(3)})
    assert_zeros(model, masks, {**expected, "conv2.weight": ([], [0, 1, 3])})


def test_parameters_under_two_names_and_in_half_precision() -> None:
    model: Any = net(
        lambda m, x: pooled(F.relu(m.one(x)) + F.relu(m.two(x))), one=conv(3, 4, bias=True), two=conv(3, 4, bias=True)
    )
    model.two.weight = model.one.weight
    masks = anatomy(model.half(), (image()[0].half(),)).live_masks({"relu": mask(4, 0, 1), "relu_1": mask(4, 1, 2)})
    assert masks["one.weight"].dtype == torch.half
    # channel 1 is dead on both sides of the sum, and the weights are one
    assert_zeros(model, masks, {"one.weight": ([1], []), "one.bias": ([0, 1], []), "two.bias": ([1, 2], [])})


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().view(torch.int32) for name, p in model.named_parameters()}


def test_noise_leaves_the_dead_as_they_are_to_the_bit() -> None:
    model = stream()
    with torch.no_grad():
        model.conv2.weight[1, 0] = -0.0
        model.bn2.weight[1] = -0.0
    noise = Noise(model)
    noise.spare(anatomy(model, image()).live_masks({"relu_2": mask(4, 1)}))
    before = bits(model)
    for step in range(3):
        noise.add(0.1, seed=step)
    moved = {name: now != before[name] for name, now in bits(model).items()}
    for name in ("conv2.weight", "bn2.weight", "bn2.bias"):
        assert not moved[name][1].any()
        assert moved[name][[0, 2, 3]].all()
        del moved[name]
    assert all(bool(m.all()) for m in moved.values())


@pytest.mark.parametrize("whole", [False, True], ids=["after the addition", "a whole layer"])
def test_a_training_with_a_frozen_census_moves_no_dead_unit(whole: bool) -> None:
    torch.manual_seed(0)
    model: Any = awaken(demo.resnet(num_classes=10, input_shape=(1, 8, 8), width=4, blocks=2))
    block, traced = model.layer2[1], anatomy(model, (torch.zeros(2, 1, 8, 8),))
    norm, layer = (block.bn1, block.conv1) if whole else (block.bn2, block.conv2)
    dead = list(range(8)) if whole else [2, 5]
    with torch.no_grad():
        norm.bias[dead] = -100.0
    section = config.sparse_of(sigma_peak=0.01, lambda_peak=0.0, census_batches=1, census_batch_size=64, epochs=20)
    method = Demp(section, joining_test_split(section, 5))
    method.begin(state(model, traced))
    method.figures(99)
    name = "layer2_1_relu1" if whole else "layer2_1_relu2"
    verdict = method.last_verdict()[name]
    assert verdict.nonzero().flatten().tolist() == dead
    assert traced.dead_count({name: verdict}) == (8 if whole else 0)
    weight, scale, shift = (p.detach().clone() for p in (layer.weight, norm.weight, norm.bias))
    for step in (10, 30):
        method.after_step(step)
    alive = [i for i in range(8) if i not in dead]
    for now, then in ((layer.weight, weight), (norm.weight, scale), (norm.bias, shift)):
        moved = (now != then).reshape(8, -1).any(1)
        assert moved.nonzero().flatten().tolist() == alive


class Held(fx.Interpreter):
    """Runs the network with its dead units at 0."""

    def __init__(self, traced: Anatomy, dead: Mapping[str, Tensor]) -> None:
        super().__init__(traced.traced.module)
        self._axis, self._dead = traced.axis, dead

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.name not in self._dead:
            return out
        return out.movedim(self._axis[n.name], -1).masked_fill(self._dead[n.name], 0.0).movedim(-1, self._axis[n.name])


@settings(QUICK, max_examples=40)
@given(st.randoms(use_true_random=False))
@torch.no_grad()
def test_of_a_random_network_with_its_dead_units_at_zero_nothing_that_is_gone_is_seen(rng: Random) -> None:
    model, example = grow(rng)
    traced = anatomy(model, example)
    dead = {name: torch.tensor([rng.random() < 0.5 for _ in range(n)]) for name, n in traced.watch.items()}
    found, named = units(model, example).gone(dead), dict(model.named_parameters())
    before = Held(traced, dead).run(*example)
    for name, flags in found.items():
        named[name].add_(torch.from_numpy(flags) * torch.randn(named[name].shape))
    after = Held(traced, dead).run(*example)
    assert found or not any(flags.any() for flags in dead.values())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
