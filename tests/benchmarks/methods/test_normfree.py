"""The benchmark of a network without batch norm: the narrow network that it compares with."""

from __future__ import annotations

import dataclasses

from benchmarks.methods import normfree
from pipeline import config
from pipeline.data import load
from pipeline.models import build
from runtime.macs import macs

SHAPE = (3, 32, 32)


def test_the_narrow_network_comes_nearest_to_the_share() -> None:
    data = dataclasses.replace(load(config.Data()), input_shape=SHAPE)
    width = normfree.narrow_width(0.5, 1, data)
    sizes = [normfree._macs(normfree.vit(w, 1), data) for w in (width - 3, width, width + 3, normfree.WIDTH)]
    shares = [size / sizes[-1] for size in sizes]
    assert width % normfree.HEADS == 0 and abs(shares[1] - 0.5) < min(abs(shares[0] - 0.5), abs(shares[2] - 0.5))
    network = build(normfree.vit(width, 1), num_classes=10, input_shape=SHAPE)
    assert macs(network, SHAPE) == sizes[1]
    assert network.get_parameter("patch_embed.proj.weight").shape == (width, 3, 4, 4)
