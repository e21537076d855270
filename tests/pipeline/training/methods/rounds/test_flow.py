"""Signals of connections, worked out by hand, and what NNrelief does with them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.surgery.trace import trace
from pipeline.surgery.watch import anatomy
from pipeline.training.methods.rounds.branches import additions, signals_of, weak_channels
from pipeline.training.methods.rounds.flow import connection_strengths, fewest_carrying, inputs_of
from pipeline.training.methods.rounds.nnrelief import NNrelief, nnrelief
from pipeline.training.optimizer import optimizer_for
from pipeline.training.state import TrainState
from runtime.errors import UserError
from tests.pipeline.training.small import SHAPE, joining


def test_the_fewest_that_carry_the_share_stay() -> None:
    strengths = torch.tensor([[5.0, 1.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert fewest_carrying(strengths, 0.8).tolist() == [[True, False, True, False], [False] * 4, [True] * 4]
    assert fewest_carrying(strengths, 0.5).tolist() == [
        [True, False, False, False],
        [False] * 4,
        [True, True, False, False],
    ]


def test_a_linear_layer_weighs_its_inputs_and_its_bias_is_one() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, -1.0]]))
        layer.bias.copy_(torch.tensor([-4.0, 0.25]))
    network = nn.Sequential(layer)
    signal = inputs_of(network, ["0"], [(torch.tensor([[1.0, -1.0, 2.0]]),), (torch.tensor([[-3.0, 1.0, 0.0]]),)])["0"]
    assert signal.tolist() == [2.0, 1.0, 1.0]
    assert connection_strengths(layer, signal, "norm").tolist() == [[2.0, 2.0, 0.5, 4.0], [0.0, 1.0, 1.0, 0.25]]


@pytest.mark.parametrize("over", ["norm", "sum"])
def test_a_kernel_is_as_strong_as_the_map_that_it_makes(over: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    signal = torch.rand(4, 5, 5)
    strengths = connection_strengths(layer, signal, over)
    output, index = 4, 1  # of the second group: its input is channel 3
    kernel = layer.weight.detach()[output, index].abs()[None, None]
    own = F.conv2d(signal[3][None, None], kernel, stride=2, padding=1)
    assert strengths.shape == (6, 2)
    assert strengths[output, index].item() == pytest.approx(float(own.sum() if over == "sum" else own.norm()))
    layer.padding_mode = "circular"
    layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert connection_strengths(layer, signal, over)[output, index] > strengths[output, index]


def test_nnrelief_goes_back_to_the_start_and_silences_dead_units() -> None:
    section = config.sparse_of(method="nnrelief", rounds=2, retrain_epochs=1, reset=True, epochs=2, alpha_conv=0.9)
    training = joining(section)
    network = training.network
    conv2, bn2 = network.get_submodule("conv2"), network.get_submodule("bn2")
    assert isinstance(conv2, nn.Conv2d) and isinstance(bn2, nn.BatchNorm2d)
    example = (torch.zeros(2, *SHAPE),)
    optimizer = optimizer_for(config.Training(), list(network.parameters()))
    method = NNrelief(section, training)
    own = TrainState(network, anatomy(network, example), optimizer, network, 0)
    method.masks.bind(own)
    method.begin(own)
    first = conv2.weight.detach().clone()
    with torch.no_grad():
        bn2.bias[1] = -100.0
        conv2.weight.mul_(torch.tensor([1e-6, 1.0, 1.0, 1.0]).view(1, 4, 1, 1))
    method.between(method.rounds.lengths[0] - 1)
    mask = method.masks.values["conv2.weight"]
    kernels = mask.flatten(2)
    assert torch.equal(kernels.any(2), kernels.all(2))
    assert not bool(mask[:, 0].any())
    assert not bool(mask[1].any())
    assert not bool(method.masks.values["bn2.weight"][1])
    assert bool(mask[0].any())
    assert torch.equal(conv2.weight, first * mask)
    figures = method.figures(0)
    assert figures["living_weights"] < 9 * 4 + 9 * 12 + 6
    assert figures["density"] == pytest.approx(figures["living_weights"] / (9 * 4 + 9 * 12 + 6))


class Added(nn.Module):
    """conv + bn beside an identity, then beside a skip with a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.skip, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.relu, self.linear = nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu(self.stem(x))
        second = self.relu(self.bn(self.conv(first)) + first)
        third = self.relu(torch.add(self.conv2(second), self.norm(self.skip(second))))
        y: Tensor = self.linear(third.mean((2, 3)))
        return y


def test_of_two_branches_that_are_added_the_channels_that_the_other_drowns_go() -> None:
    torch.manual_seed(0)
    network, example = Added(), (torch.rand(8, *SHAPE),)
    pairs = additions(trace(network.eval(), example))
    assert [[(side.layer, side.norm) for side in pair] for pair in pairs] == [
        [("conv", "bn"), (None, None)], [("conv2", None), ("skip", "norm")],
    ]  # fmt: skip
    one, other = torch.tensor([[3.0, 4.0], [0.1, 0.0], [9.0, 0.0]]), torch.tensor([[5.0, 0.0], [6.0, 8.0], [0.0, 0.1]])
    weak, drowned = weak_channels(one, other, 0.95)  # 0.05 / 0.95 of the other
    assert (weak.tolist(), drowned.tolist()) == ([False, True, False], [False, False, True])
    with torch.no_grad():
        network.stem.weight.fill_(1.0)
        assert network.stem.bias is not None
        network.stem.bias.zero_()
        for p in (network.conv.weight, network.conv2.weight, network.skip.weight):
            p.copy_(torch.eye(3).view(3, 3, 1, 1))
        network.bn.weight.copy_(torch.tensor([1.0, 0.01, 1.0]))  # the second of the first branch is drowned
        network.norm.weight.copy_(torch.tensor([1.0, 1.0, 1e-3]))  # the third of the skip
    signals = signals_of(trace(network, example), [pair[0].node for pair in pairs], [example])
    assert torch.allclose(
        signals[pairs[0][0].node], network.bn(network.conv(network.relu(network.stem(example[0])))).abs().mean(0)
    )
    masks = masks_after_a_pruning(network, example)
    assert masks["bn.weight"].tolist() == masks["bn.bias"].tolist() == [True, False, True]
    assert masks["conv.weight"].flatten(1).any(1).tolist() == [True, False, True]
    assert masks["norm.weight"].tolist() == [True, True, False]
    assert masks["conv2.weight"].flatten(1).any(1).tolist() == [True, True, True]
    assert masks_after_a_pruning(network, example, branches=False)["bn.weight"].all()


def masks_after_a_pruning(network: nn.Module, example: tuple[Tensor, ...], **keys: Any) -> dict[str, Tensor]:
    section = config.sparse_of(method="nnrelief", rounds=1, retrain_epochs=1, epochs=2, **keys)
    training = joining(section, samples=lambda *_: iter([example]))
    training = dataclasses.replace(training, first=lambda: network, example=example)
    method = NNrelief(section, training)
    optimizer = optimizer_for(config.Training(), list(network.parameters()))
    own = TrainState(network, anatomy(network, example), optimizer, network, 0)
    method.masks.bind(own)
    method.begin(own)
    saved = copy.deepcopy(network.state_dict())
    method.between(method.rounds.lengths[0] - 1)
    network.load_state_dict(saved)
    return method.masks.values


def test_a_transposed_convolution_is_refused_by_name() -> None:
    section = config.sparse_of(method="nnrelief", epochs=2)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 2, 3))
    with pytest.raises(UserError, match="1 is a transposed convolution"):
        nnrelief(section, dataclasses.replace(joining(section), first=lambda: network))
    assert section.rounds == 6
