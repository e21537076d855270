"""Weights that a network computes from its parameters become parameters, where channels could not go otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from pipeline.surgery import load_compact, save_compact, shrink
from pipeline.surgery.plan import read_plan
from pipeline.surgery.watch import anatomy
from runtime.errors import UserError
from tests.pipeline.surgery.laws import difference, parameters, untouched
from tests.pipeline.surgery.nets import conv, image, net, pooled


class Standardised(nn.Conv2d):
    """The weights of each output channel have mean 0 and variance 1, times its gain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True) + 1e-6).sqrt()
        weight = rows.view_as(self.weight) * self.gain.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias)


@torch.no_grad()
def standardised() -> Any:
    """Channels 1 and 2 of 6 have gain and bias 0; their weights have not."""
    model: Any = net(
        lambda m, x: m.fc(pooled(F.relu(m.second(F.relu(m.first(x)))))),
        first=Standardised(3, 6), second=Standardised(6, 5), fc=nn.Linear(5, 4),
    )  # fmt: skip
    model.first.gain[1:3], model.first.bias[1:3] = 0.0, 0.0
    return model


def test_standardised_weights_are_cut_as_they_are_computed() -> None:
    """6 to 4 channels: 4*3*9 + 4 and 5*4*9 + 5 and 5*4 + 4. The standard deviation is that over all 6."""
    model = standardised()
    with untouched(model):
        compact = shrink(model, image(3, 8))
    assert compact.certificate["channels"] == {"before": 11, "dead": 2, "after": 9}
    assert parameters(compact.model) == (108 + 4) + (180 + 5) + (20 + 4)
    assert difference(model, compact.model, image(3, 8)) < 1e-6  # computed weights are rounded to fp32
    assert compact.certificate["law"]["max_rel_diff"] < 1e-12
    assert len(compact.plan.computed) == 2


def test_weight_norm_is_cut_and_loaded_again(tmp_path: Path) -> None:
    model = net(
        lambda m, x: m.fc(pooled(F.relu(m.second(F.relu(m.first(x)))))),
        first=weight_norm(conv(3, 6)), second=weight_norm(conv(6, 5)), fc=nn.Linear(5, 4),
    )  # fmt: skip
    with torch.no_grad():
        model.first.parametrizations.weight.original0[4] = 0.0
    compact = shrink(model, image(3, 8))
    assert compact.certificate["channels"] == {"before": 11, "dead": 1, "after": 10}
    save_compact(compact, tmp_path)
    loaded = load_compact(tmp_path, model)
    x = torch.randn(2, *image(3, 8)[0].shape[1:])
    assert torch.equal(loaded(x), compact.model.eval()(x))
    again = shrink(loaded, image(3, 8))
    assert again.plan.computed == compact.plan.computed and again.plan.layers == compact.plan.layers


def test_a_plan_that_replaces_what_is_not_computed_is_refused(tmp_path: Path) -> None:
    model = standardised()
    save_compact(shrink(model, image(3, 8)), tmp_path)
    plan = tmp_path / "plan.json"
    known = read_plan(plan).computed[0]
    plan.write_text(plan.read_text("utf-8").replace(f'"{known}"', '"conv2d"'), "utf-8")
    with pytest.raises(UserError, match="replaces conv2d, which the network does not compute") as caught:
        load_compact(tmp_path, model)
    assert "library versions" in caught.value.remedy


def test_positions_that_rules_can_follow_stay_as_they_are() -> None:
    """A parameter looked up in a table is followed by rules: nothing is replaced."""
    model = net(
        lambda m, x: m.fc(pooled(m.conv(x) * m.scale.exp().view(-1, 1, 1))), conv=conv(3, 6), fc=nn.Linear(6, 4)
    )
    model.register_parameter("scale", nn.Parameter(torch.zeros(6)))
    compact = shrink(model, image(3, 8))
    assert compact.plan.computed == ()
    assert "scale" in dict(compact.model.named_parameters())


def test_while_it_trains_a_network_computes_its_weights_itself() -> None:
    traced = anatomy(standardised(), image(3, 8)).traced
    assert traced.computed == {}
    assert any("gain" in str(node.target) for node in traced.module.graph.nodes if node.op == "get_attr")
