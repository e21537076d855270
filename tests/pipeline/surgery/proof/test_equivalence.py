"""The law as a post-condition: what breaks it is refused, and the first tensor that differs is named."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.surgery import rules, shrink
from pipeline.surgery.cut import rebuild
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.slices import Copies, cut_tensor
from pipeline.surgery.proof import equivalence as law
from pipeline.surgery.proof import evidence
from pipeline.surgery.rules.broadcast import merge
from pipeline.surgery.rules.layers import convolution
from pipeline.surgery.rules.layers import linear as layers
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


@dataclass(slots=True)
class Answer:
    logits: Tensor
    more: Any = None


@dataclass
class Named(OrderedDict[str, Any]):
    """An answer that is a dict and has fields, as those of Hugging Face's networks."""

    logits: Any = None
    features: Any = None

    def __post_init__(self) -> None:
        self["logits"] = self.logits


def test_tensors_are_found_in_any_container() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    found = law.flat([{"x": a}, Answer(b, SimpleNamespace(inner=[c], name="c")), None, len])
    assert [float(t) for t in found] == [0.0, 1.0, 2.0]
    loop = SimpleNamespace(inner=Answer(a))
    loop.inner.more = [loop, b]
    assert [float(t) for t in law.flat(loop)] == [0.0, 1.0]


def test_what_is_no_number_is_compared_too() -> None:
    nan, inf = torch.nan, torch.inf
    same = torch.tensor([1.0, nan, inf, -inf])
    assert law.relative(same, same.clone()) == 0.0
    for i, other in ((0, nan), (0, inf), (1, 0.0), (2, -inf), (2, 1.0), (3, nan)):
        changed = same.clone()
        changed[i] = other
        assert law.relative(changed, same) == inf and law.relative(same, changed) == inf
    assert law.relative(torch.tensor([1.0, inf]), torch.tensor([2.0, inf])) == 0.5  # of the largest finite answer
    assert law.relative(torch.zeros(3, 1), torch.zeros(3)) == inf
    assert law.relative(torch.zeros(0, 2), torch.zeros(0, 2)) == 0.0
    assert law.relative(torch.tensor([True, False]), torch.tensor([True, True])) == 1.0
    assert law.relative(torch.tensor([3j]), torch.tensor([4j])) == 0.25


@pytest.mark.parametrize(
    "last",
    [lambda x: x / (x - x), lambda x: x / 0 * x.sign(), lambda x: None, lambda x: SimpleNamespace(), lambda x: ()],
)
def test_an_answer_without_a_number_is_no_proof(last: Callable[[Tensor], Any]) -> None:
    model = net(lambda m, x: last(m.conv(x)), conv=conv(3, 4))
    with pytest.raises(UserError, match="answers no finite number to random, batch 2 inputs"):
        shrink(model, image())


@pytest.mark.parametrize("answer", [Answer, Named])
def test_an_answer_with_fields_is_compared_and_returned(monkeypatch: pytest.MonkeyPatch, answer: type) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return answer(m.fc(pooled(F.relu(m.conv(x)))))

    model = net(forward, conv=conv(3, 4), fc=nn.Linear(4, 3))
    still(model.conv, (1,))
    compact = shrink(model, image())
    x = torch.randn(3, 3, 8, 8)
    got: Any = compact.model(x)
    assert type(got).__name__ == answer.__name__ and compact.model.get_parameter("conv.weight").shape[0] == 3
    torch.testing.assert_close(got.logits, model(x).logits)
    right = layers._outgoing
    monkeypatch.setattr(layers, "_outgoing", lambda a, w, i: (right(a, w, i)[0] * 0 + 1, right(a, w, i)[1]))
    with pytest.raises(UserError, match="differs by"):
        shrink(model, image())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_outputs_that_are_no_numbers_in_fp32_are_told(broken: float) -> None:
    """Two images; the second of one network's answers is no number, and no largest change hides it."""

    def spoilt(x: Tensor) -> Tensor:
        out = x.clone()
        out[1, 0] = broken
        return out

    images = [torch.ones(2, 3)]
    whole = nn.Identity()
    change = evidence.change_of_outputs(
        lambda x: x + torch.tensor([0.0, 0.5, 0.0]), whole, images, lambda out: out.argmax(1)
    )
    assert change == {"images": 2, "max_abs": 0.5, "top1_changed": 2}
    with pytest.raises(UserError, match="NaN or infinity in fp32"):
        evidence.change_of_outputs(spoilt, whole, images, None)
