"""Networks that no training would help, told before one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.soundness import demand_exportable, demand_sound
from runtime.errors import UserError

SHAPE = (1, 8, 8)


class Net(nn.Module):
    """One layer, and `kind` of fault."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.norm = kind, nn.Linear(64, 10), nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(1))
        if self.kind == "random":
            return F.dropout(y, 0.5)
        if self.kind == "batch":
            return y - y.mean(0)
        normed: Tensor = self.norm(y)
        return normed if self.kind == "norm" else y


def test_a_sound_network_passes_and_stays_as_it_was() -> None:
    network = Net("norm").train()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    demand_sound(network, "net", SHAPE, 32)
    assert network.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "batch", "words"),
    [
        ("random", 32, "answers the same images differently the second time, in eval mode"),
        ("batch", 32, "answers an image differently beside other images than alone"),
        ("norm", 1, r"net cannot be trained on 1 image a step \(Expected more than 1 value per channel"),
    ],
)
def test_a_fault_is_named(kind: str, batch: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        demand_sound(Net(kind), "net", SHAPE, batch)
    assert caught.value.remedy


def test_what_cannot_be_exported_is_named() -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match=r"net cannot become an ONNX file: .*adaptive_max_pool2d"):
        demand_exportable(body, "net", SHAPE, 18)
    demand_exportable(Net("none"), "net", SHAPE, 18)
    assert body.training
