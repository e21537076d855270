"""EAST's three parts by hand: DyReLU by its formula, shared blocks, a density that comes and goes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.models import build
from pipeline.surgery import shrink
from pipeline.training.masks import in_scope
from pipeline.training.methods.east.dyrelu import DyReLU, channels_of_relus
from pipeline.training.methods.east.east import East, east
from pipeline.training.methods.east.sharing import SharedConv2d, sharers
from pipeline.training.optimizer import Optimizer
from runtime.errors import UserError
from tests.pipeline.training.small import SHAPE, joining_test_split, state

MODEL = config.Model(args={"width": 4, "blocks": 4})


def network() -> nn.Module:
    torch.manual_seed(0)
    return build(MODEL, num_classes=10, input_shape=SHAPE)


def begun(**keys: Any) -> tuple[East, nn.Module, Any]:
    """The method, the plain network and the state that trains; 10 epochs of 4 steps."""
    options = {"density": 0.1, "epochs": 10, "cycle_every": 1, "every": 2, **keys}
    section = config.sparse_of(method="east", **options)
    plain = network()
    method = East(section, dataclasses.replace(joining_test_split(section, 4), first=lambda: plain))
    own = state(method.build(plain, 0), object())
    method.masks.bind(own)
    method.begin(own)
    method.masks.apply()
    return method, plain, own


def test_dyrelu_is_the_larger_of_two_lines_and_fades_into_relu() -> None:
    module = DyReLU(3, torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 4, 4)
    theta = 2 * module.excite(module.squeeze(x.mean((2, 3))).relu()).sigmoid() - 1
    expected = torch.empty_like(x)
    for n in range(2):
        for c in range(3):
            a, b, shift, other = theta[n, 4 * c : 4 * c + 4]
            expected[n, c] = torch.maximum((1 + a) * x[n, c] + 0.5 * shift, b * x[n, c] + 0.5 * other)
    assert torch.allclose(module(x), expected, atol=1e-6)
    module.beta.fill_(0)
    assert torch.equal(module(x), x.relu())
    flat = torch.randn(5, 3)
    assert torch.equal(module(flat), flat.relu())


def test_relus_that_are_called_once_are_seen_with_their_channels() -> None:
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 5, 3), nn.ReLU())
    assert channels_of_relus(twice, (torch.zeros(2, 1, 8, 8),)) == {"5": 5}
    assert len(channels_of_relus(network(), (torch.zeros(2, *SHAPE),))) == 1 + 3 * 4 * 2


def test_third_and_later_blocks_share_the_seconds_convolutions_and_have_their_own_in_the_end() -> None:
    pairs = sharers(network())
    assert pairs["layer2.3.conv1"] == "layer2.1.conv1" and pairs["layer1.2.conv2"] == "layer1.1.conv2"
    assert len(pairs) == 3 * 2 * 2 and not any(path.split(".")[1] in "01" for path in pairs)
    method, plain, own = begun(dyrelu="none")
    assert isinstance(own.network.get_submodule("layer1.2.conv1"), SharedConv2d)
    assert own.network.layer1[2].conv1.weight is own.network.layer1[1].conv1.weight
    assert len(list(own.network.parameters())) == len(list(plain.parameters()))  # 12 weights for 12 scalars
    last = method.build(own.network, 40)
    names = [name for name, _ in last.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]
    scale = own.network.layer1[2].conv1.scale
    weights = dict(last.named_parameters())
    assert torch.equal(weights["layer1.2.conv1.weight"], scale * weights["layer1.1.conv1.weight"])
    x = torch.rand(3, *SHAPE)
    assert torch.allclose(last.eval()(x), own.network.eval()(x), atol=1e-5)
    compact = shrink(last, (x,))
    assert torch.allclose(compact.model(x), last(x), atol=1e-4)


def test_the_count_is_the_density_of_all_weights_and_comes_and_goes_in_cycles() -> None:
    method, plain, _ = begun(dyrelu="none", cycles=2, cycle=0.2, distribution="uniform")
    size = sum(weight.numel() for weight in in_scope(plain).values())
    unique = sum(mask.numel() for mask in method.masks.values.values())
    assert unique < 0.7 * size
    assert method.masks.living == pytest.approx(0.1 * size, abs=10)
    for weight in method.masks.weights.values():
        weight.grad = torch.rand_like(weight)
    densities = []
    for step in range(20):
        method.after_step(step, True)
        densities.append(method.masks.living / size)
    assert densities[3] == pytest.approx(0.3, abs=0.005)  # the middle of a cycle of 8 steps
    assert densities[1] == pytest.approx(0.2, abs=0.005)
    assert densities[7] == pytest.approx(0.1, abs=0.005)
    assert densities[11] == pytest.approx(0.3, abs=0.005)
    assert densities[16:] == pytest.approx([0.1] * 4, abs=0.005)
    assert method.figures(19)["density"] == densities[-1]


def test_dyrelu_fades_by_epochs_and_its_parameters_and_scalars_are_neither_masked_nor_decayed() -> None:
    method, _, own = begun(phase_from=0.2, phase_until=0.6)
    module = next(m for m in own.network.modules() if isinstance(m, DyReLU))
    betas = []
    for epoch in range(8):
        method.after_step(4 * epoch + 3, False)
        betas.append(float(module.beta))
    assert betas == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
    assert [step for step in range(40) if method.rebuilds(step)] == [23, 39]
    assert not any("excite" in name or "squeeze" in name for name in method.masks.values)
    plainer = method.build(own.network, 24)
    assert not any(isinstance(m, DyReLU) for m in plainer.modules())
    assert any(isinstance(m, SharedConv2d) for m in plainer.modules())
    scale = own.network.layer1[2].conv1.scale
    before = float(scale.detach())
    method.after_backward(0)
    with torch.no_grad():
        own.optimizer._decay(own.optimizer.inner.param_groups[0]["lr"])
    assert float(scale.detach()) == pytest.approx(before, rel=1e-6)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        inner = kind(own.network.parameters(), lr=0.1, weight_decay=0.3)
        method.begin(dataclasses.replace(own, optimizer=Optimizer(inner, tuple(own.network.parameters()), 0.0)))
        for p in own.network.parameters():
            p.grad = torch.zeros_like(p)
        method.after_backward(0)
        inner.step()
        assert float(scale.detach()) == pytest.approx(before, rel=1e-5)
    late, _, other = begun(dyrelu="late", phase_from=0.2, phase_until=0.6)
    late.after_step(3, False)
    assert all(float(m.beta) == 0 for m in other.network.modules() if isinstance(m, DyReLU))


def test_gradients_are_clipped_together() -> None:
    method, _, own = begun(dyrelu="none", clip=1.0)
    for p in own.network.parameters():
        p.grad = torch.ones_like(p)
    method.after_backward(0)
    norms = torch.stack([p.grad.norm() for p in own.network.parameters()])
    assert float(norms.norm()) == pytest.approx(1.0, rel=1e-3)


def test_phases_that_do_not_fit_and_densities_of_layers_are_refused() -> None:
    several = config.sparse_of(method="east", epochs=10, density=0.1, densities={"linear": 0.5})
    with pytest.raises(UserError, match=r"sparse\.densities with east"):
        east(several, dataclasses.replace(joining_test_split(several, 4), first=network))
    section = config.sparse_of(method="east", epochs=1, density=0.1)
    with pytest.raises(UserError, match=r"DyReLU fades from epoch 0 to 0 of 1; .*sparse\.dyrelu: none"):
        east(section, dataclasses.replace(joining_test_split(section, 4), first=network))
