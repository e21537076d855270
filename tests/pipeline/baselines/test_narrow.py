"""A narrow network keeps the same share everywhere; images at a lower resolution; the search for a size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.baselines import narrow
from pipeline.baselines.narrow import largest, narrowed
from pipeline.baselines.smaller import resized, sides_of
from pipeline.config import Config
from pipeline.data import load
from pipeline.models import build_for
from pipeline.models.demo import resnet
from runtime.errors import UserError
from runtime.macs import macs


def widths(network: nn.Module) -> list[int]:
    return [len(p) for p in network.parameters() if p.dim() == 4]


def test_every_layer_keeps_the_share_to_the_next_multiple() -> None:
    whole = resnet(num_classes=4, input_shape=(1, 8, 8), width=16)
    assert widths(whole) == [16, 16, 16, 32, 32, 32, 64, 64, 64]
    half = narrowed(whole, (1, 8, 8), 0.5, 1)
    assert widths(half) == [8, 8, 8, 16, 16, 16, 32, 32, 32]
    assert widths(narrowed(whole, (1, 8, 8), 0.01, 8)) == [8] * 9
    assert widths(narrowed(whole, (1, 8, 8), 1.0, 16)) == widths(whole)
    # a narrow network of the same kind, made so: as many products
    assert macs(half, (1, 8, 8)) == macs(resnet(num_classes=4, input_shape=(1, 8, 8), width=8), (1, 8, 8))
    assert half(torch.zeros(2, 1, 8, 8)).shape == (2, 4) and half.training


def test_its_weights_follow_from_the_random_state_and_are_not_slices() -> None:
    data = load(config.Data())
    args = {"of": "demo:resnet", "args": {"width": 16}, "share": 0.5, "align": 1}
    made_by: list[nn.Module] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made_by.append(build_for(config.Model(name=narrow.SPEC, args=args), data))
    first, again, other = (network.get_parameter("layer2.0.conv1.weight") for network in made_by)
    assert torch.equal(first, again) and not torch.equal(first, other)
    bound = (8 * 9) ** -0.5  # torch's own rule for 8 input channels of 3 x 3; a slice would keep that for 16
    assert bound / 2**0.5 < float(first.detach().abs().max()) <= bound


def test_a_network_without_channels_to_lose_is_told() -> None:
    with pytest.raises(UserError, match="no layer can be made narrower"):
        narrowed(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (1, 8, 8), 0.5, 1)


def test_the_search_finds_the_largest_share_that_fits() -> None:
    share = largest(lambda one: one <= 0.37)
    assert share is not None and 0.37 - 0.02 < share <= 0.37
    assert largest(lambda one: False) is None


def test_sides_go_down_to_a_quarter() -> None:
    assert sides_of(8) == [7, 6, 5, 4, 3, 2]
    assert sides_of(32) == [28, 24, 20, 16, 12, 8]
    assert sides_of(224)[0] == 216 and sides_of(224)[-1] == 56


def test_images_are_averaged_and_keep_labels_and_normalisation() -> None:
    data = load(config.Data())
    small = resized(Config(), data, 4)
    assert small.input_shape == (1, 4, 4) and (small.mean, small.std) == (data.mean, data.std)
    (before, labels), (after, same) = (next(iter(one.test.batches(5))) for one in (data, small))
    assert after.shape == (5, 1, 4, 4) and torch.equal(labels, same)
    # an antialiased image of half the side has about the mean of the whole
    assert float((before.mean((1, 2, 3)) - after.mean((1, 2, 3))).abs().max()) < 0.1
