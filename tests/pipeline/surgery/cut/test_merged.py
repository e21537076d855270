"""Constants behind zero padding become one channel: exact in the middle and at the borders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.surgery import Compact, load_compact, save_compact, shrink
from pipeline.surgery.compact import apply_plan
from pipeline.surgery.plan import Plan
from runtime.errors import UserError
from tests.pipeline.surgery.laws import difference, macs, untouched

EXAMPLE = (torch.zeros(2, 3, 7, 9),)
VALUES = (0.5, 1.0, 0.0, 2.0)  # of channels 2 to 5 of the first layer


class Padded(nn.Module):
    """Eight channels, three of them constants other than 0 and one 0; a layer with zero padding reads them."""

    def __init__(self, layer: type[nn.Module] = nn.Conv2d, values: tuple[float, ...] = VALUES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), layer(8, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            self.a.weight[2 : 2 + len(values)] = 0
            self.a.bias[2 : 2 + len(values)] = torch.tensor(values)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))  # type: ignore[no-any-return]


def same(net: nn.Module, compact: Compact) -> bool:
    """In float64, where the law is held; kernels are rounded to float32 afterwards."""
    return compact.certificate["law"]["max_rel_diff"] < 1e-12 and difference(net, compact.model, EXAMPLE) < 1e-6


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_all_constants_become_one_channel_of_ones(layer: type[nn.Module], tmp_path: Path) -> None:
    net = Padded(layer).eval()
    with untouched(net):
        compact = shrink(net, EXAMPLE)
    assert compact.certificate["channels"] == {"before": 14, "dead": 4, "after": 10}
    assert compact.certificate["merged"] == [{"layer": "b", "constants": 3, "into": "a channel of ones"}]
    assert compact.plan.ones == ("b.weight",) and same(net, compact)
    inner = 1 if layer is nn.Conv2d else 0
    assert compact.model.get_parameter("b.weight").shape[inner] == 4 + 1
    by_hand = 0.5 * net.b.weight.select(inner, 2) + net.b.weight.select(inner, 3) + 2 * net.b.weight.select(inner, 5)  # type: ignore[operator]
    assert torch.allclose(compact.model.get_parameter("b.weight").select(inner, 4), by_hand, atol=1e-7)
    assert macs(compact.model, EXAMPLE) == 7 * 9 * (3 * 4 * 9 + 5 * 6 * 9 + 6 * 4)
    save_compact(compact, tmp_path)
    x = torch.randn(3, 3, 5, 4)  # of another size
    assert torch.equal(load_compact(tmp_path, Padded(layer))(x), compact.model.eval()(x))


@pytest.mark.parametrize(("align", "width", "merged"), [(5, 5, 2), (6, 6, 1), (8, 8, 0)])
def test_a_constant_that_stays_for_alignment_takes_up_the_others(align: int, width: int, merged: int) -> None:
    net = Padded().eval()
    compact = shrink(net, EXAMPLE, align=align)
    assert compact.model.get_parameter("a.weight").shape[0] == width == compact.model.get_parameter("b.weight").shape[1]
    assert [row["constants"] for row in compact.certificate["merged"]] == [merged] * bool(merged)
    assert compact.plan.ones == () and same(net, compact)


def test_a_lone_constant_is_the_one_channel_and_stays() -> None:
    net = Padded(values=(0.5, 0.0)).eval()
    compact = shrink(net, EXAMPLE)
    assert compact.model.get_parameter("a.weight").shape[0] == 7 and compact.certificate["merged"] == []
    (why,) = compact.certificate["groups"][0]["kept_dead_because"]
    assert why == "the only constant behind zero padding, where none can be folded"


def test_cut_once_more_the_channel_of_ones_takes_up_the_next(tmp_path: Path) -> None:
    first = shrink(Padded().eval(), EXAMPLE)
    with torch.no_grad():
        first.model.get_parameter("a.weight")[0] = 0
        first.model.get_parameter("a.bias")[0] = 3.0
    second = shrink(first.model, EXAMPLE)
    assert second.plan.ones == ("b.weight",) and second.plan.layers["a.weight"] == (1, 6, 7)
    assert second.certificate["merged"] == [{"layer": "b", "constants": 1, "into": "a constant channel that stays"}]
    assert same(first.model, second)
    save_compact(second, tmp_path)
    x = torch.randn(2, 3, 7, 9)
    assert torch.equal(load_compact(tmp_path, Padded())(x), second.model.eval()(x))


class Functional(Padded):
    """The same by functions, the weight read by name."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.c(F.conv2d(y, self.b.weight, None, padding=1))  # type: ignore[no-any-return, arg-type]


class Twice(Padded):
    """The weight is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.c(self.b(y) + self.b(y * 2))  # type: ignore[no-any-return]


def test_functions_as_modules_and_a_weight_used_twice_stays() -> None:
    net = Functional().eval()
    compact = shrink(net, EXAMPLE)
    assert compact.model.get_parameter("b.weight").shape == (6, 5, 3, 3)
    assert same(net, compact)
    net = Twice().eval()  # type: ignore[assignment]
    compact = shrink(net, EXAMPLE)
    assert compact.model.get_parameter("a.weight").shape[0] == 7 and compact.certificate["merged"] == []
    assert same(net, compact)


def test_a_plan_of_ones_for_no_convolution_is_refused() -> None:
    net = Padded().eval()
    plan: Plan = shrink(net, EXAMPLE).plan
    with pytest.raises(UserError, match=r"gives a channel of ones to d\.weight"):
        apply_plan(Padded(), plan.model_copy(update={"ones": ("d.weight",)}))
    assert apply_plan(Padded(), plan).get_parameter("b.weight").shape[1] == 5
