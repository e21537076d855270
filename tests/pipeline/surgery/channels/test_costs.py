"""MACs as a function of which channels stay, against what torch counts in the network that is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from pipeline.config import Model
from pipeline.models import build
from pipeline.surgery.channels.costs import costs_of
from pipeline.surgery.cut.choose import Choice, choose
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import trace
from runtime.macs import macs

SIDE = 32


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    own = {
        name: build(Model(name=name), num_classes=10, input_shape=(3, SIDE, SIDE))
        for name in ("cifar:resnet20", "demo:resnet")
    }
    named = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf", "vgg11_bn", "densenet121", "resnext50_32x4d")
    return own | {name: torchvision.models.get_model(name, weights=None) for name in named}


@pytest.mark.parametrize("name", sorted(networks()))
def test_macs_of_the_whole_and_of_what_a_cut_leaves(name: str) -> None:
    network = networks()[name].eval()
    analysis = analyse(trace(network, (torch.zeros(1, 3, SIDE, SIDE),)))
    costs = costs_of(analysis)
    everything = np.ones(costs.count, bool)
    assert costs.macs(everything) == macs(network, (3, SIDE, SIDE))
    random = np.random.default_rng(0)

    def some(choice: Choice) -> None:
        choice.keep[:] = True
        for group in costs.groups:
            if not any(
                np.isin(choice.classes[ids], group.classes).any() for rows in analysis.ledger.rows for ids in rows.parts
            ):
                gone = random.permutation(group.classes)[: len(group.classes) // 3]
                choice.keep[gone] = False

    choice, cut = choose(analysis, 1, some)
    assert not choice.keep.all()
    assert costs.macs(choice.keep) == pytest.approx(macs(rebuild(analysis, cut), (3, SIDE, SIDE)), rel=1e-9)


def test_what_one_channel_costs_is_the_difference_it_makes() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten()
    )
    analysis = analyse(trace(network, (torch.zeros(1, 3, 6, 6),)))
    costs = costs_of(analysis)
    everything = np.ones(costs.count, bool)
    (group,) = [g for g in costs.groups if len(g.classes) == 4]
    each = costs.of_each(everything)
    assert each[group.classes].tolist() == [3 * 9 * 36 + 5 * 36] * 4
    less = everything.copy()
    less[group.classes[1]] = False
    assert costs.macs(everything) - costs.macs(less) == each[group.classes[1]]
    assert set(costs.scales) == {"1.weight"}
    assert sorted(costs.scales["1.weight"].tolist()) == sorted(group.classes.tolist())
