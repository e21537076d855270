"""The law as a post-condition: what breaks it is refused, and the first tensor that differs is named."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.surgery import law, rebuild, rules, shrink
from pipeline.surgery.cut import Cut
from pipeline.surgery.entries import Copies, cut_tensor
from pipeline.surgery.rules import convolution, layers
from pipeline.surgery.rules.merge import merge
from runtime.errors import UserError
from tests.pipeline.surgery.nets import conv, image, net, plain, pooled, residual, still


def test_the_certificate_says_on_what_the_law_was_held() -> None:
    oracle = plain()
    real = [image(3, batch=5), image(3, batch=1)]
    found = shrink(oracle.model, oracle.example, real=real, tolerance=1e-10).certificate["law"]
    assert found["inputs"] == ("random, batch 2", "random, batch 3", "real, batch 5", "real, batch 1")
    assert (found["tolerance"], found["held"]) == (1e-10, False)
    assert found["max_rel_diff"] <= 1e-10


def test_a_layer_cut_at_the_wrong_channels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """conv1 of the residual net keeps its first channels instead of those that live."""
    oracle = residual()
    right = cut_tensor

    def wrong(tensor: Tensor, name: str, cut: Cut, copies: Copies) -> Tensor:
        made = right(tensor, name, cut, copies)
        return tensor[: len(made), :6].clone() if name == "conv1.weight" else made

    monkeypatch.setattr(rebuild, "cut_tensor", wrong)
    with pytest.raises(UserError, match="first at conv1") as caught:
        shrink(oracle.model, oracle.example)
    assert "the compact network differs by" in caught.value.found
    assert caught.value.expected == "at most 1e-09"


def test_a_rule_that_calls_a_live_layer_constant_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = plain()

    def unary(a: Any, node: Any) -> Any:
        x = a.value(node.args[0])
        return merge(a, node, node.args[:1], x.shape, lambda v: torch.zeros_like(v[0]))

    monkeypatch.setitem(rules.FUNCTIONS, "relu", unary)
    with pytest.raises(UserError, match="first at") as caught:
        shrink(oracle.model, oracle.example)
    assert caught.value.remedy.startswith("nothing was written")


def test_folding_where_the_border_sees_fewer_channels_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule that refuses to fold under zero padding, switched off."""
    model = net(
        lambda m, x: pooled(m.conv2(F.relu(m.bn(m.conv1(x))))), conv1=conv(3, 6), bn=nn.BatchNorm2d(6), conv2=conv(6, 4)
    )
    still(model.bn, (1,), 0.6)
    assert shrink(model, image()).plan.layers == {}
    monkeypatch.setattr(convolution, "pads", lambda padding, mode="zeros": False)
    with pytest.raises(UserError, match="first at") as caught:
        shrink(model, image())
    assert "relative, float64" in caught.value.found


def test_a_weight_changed_after_the_cut_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compact network must be the exact one rounded, entry by entry."""
    oracle = plain()
    right = law.check_law

    def spoilt(original: Any, cut: Any, compact: Any, **more: Any) -> Any:
        with torch.no_grad():
            compact.conv2.weight[0, 0, 1, 1] += 1e-4
        return right(original, cut, compact, **more)

    monkeypatch.setattr(sys.modules["pipeline.surgery.shrink"], "check_law", spoilt)  # the name is also a function
    with pytest.raises(AssertionError, match=r"conv2\.weight of the compact network") as caught:
        shrink(oracle.model, oracle.example)
    assert "rounded" in str(caught.value)


def test_real_inputs_count_as_much_as_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that random inputs never light is called constant by a broken rule; a real image shows it."""
    model = net(lambda m, x: m.fc(pooled(F.relu(m.conv(x)))), conv=conv(3, 4, 1, bias=True), fc=nn.Linear(4, 2))
    with torch.no_grad():
        model.conv.bias[2] = -100.0
    right = layers._outgoing

    def wrong(a: Any, w: Any, incoming: Any) -> Any:
        constants, measured = right(a, w, incoming)
        return (np.where(np.arange(4) == 2, -1.0, constants), measured) if w.name == "conv" else (constants, measured)

    monkeypatch.setattr(layers, "_outgoing", wrong)
    assert shrink(model, image()).plan.layers["conv.weight"] == (0, 1, 3)
    bright = (torch.full((1, 3, 8, 8), 400.0) * model.conv.weight[2].detach().sign(),)
    with pytest.raises(UserError, match="on real, batch 1 inputs") as caught:
        shrink(model, image(), real=[bright])
    assert "first at" in caught.value.found


def test_relative_difference_is_of_the_largest_answer() -> None:
    a, b = torch.tensor([1.0, 2.0, -4.0]), torch.tensor([1.0, 2.5, -4.0])
    assert law.relative(a, b) == pytest.approx(0.5 / 4)
    assert law.relative((a, {"x": b}), (a, {"x": b})) == 0.0
    assert law.relative(torch.zeros(2), torch.zeros(2)) == 0.0
