"""Sides of additions that are constants go; maps that depend on no input fold behind global pooling. Worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.surgery import anatomy, load_compact, save_compact, shrink
from pipeline.surgery.compact import apply_plan
from pipeline.surgery.cut.computed import settle
from pipeline.surgery.proof.certificate import MAP_STAYS
from pipeline.surgery.proof.evidence import Confirmation, evidence_of_groups
from pipeline.surgery.shrink import cut_of
from pipeline.surgery.trace import trace
from runtime.errors import UserError
from tests.pipeline.surgery.laws import difference, macs, untouched

EXAMPLE = (torch.zeros(2, 3, 6, 5),)


class Residual(nn.Module):
    """relu(stem + branch), pooled; the branch's last layer has no weights, so that it is its biases."""

    def __init__(self, biases: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0), in_place: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.relu, self.two, self.head = nn.ReLU(inplace=in_place), nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 2)
        with torch.no_grad():
            self.two.weight.zero_()
            self.two.bias.copy_(torch.tensor(biases))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.two(self.relu(self.one(x)))
        y += x
        z: Tensor = self.head((self.relu(y) + x.sigmoid()).mean((2, 3)))  # x is read again
        return z


@pytest.mark.parametrize("in_place", [True, False])
def test_a_branch_of_zeros_goes_with_all_that_makes_it(in_place: bool, tmp_path: Path) -> None:
    net = Residual(in_place=in_place).eval()
    with untouched(net):
        compact = shrink(net, EXAMPLE)
    assert difference(net, compact.model, EXAMPLE) < 1e-12
    assert compact.certificate["branches"] == [{"side": "two", "replaced_by": "nothing"}]
    assert compact.certificate["channels"] == {"before": 14, "dead": 10, "after": 4}
    assert compact.certificate["evidence"] == {"by_proof": 10, "by_measurement": 0}
    assert [row for row in compact.certificate["layers"] if row["layer"] == "one"] == [
        {"layer": "one", "before": 6, "dead": 6, "after": 0}
    ]
    assert macs(compact.model, EXAMPLE) == 6 * 5 * 3 * 4 * 9 + 4 * 2  # stem and head
    assert {name for name, _ in compact.model.named_parameters()} == {
        "stem.weight", "stem.bias", "head.weight", "head.bias",
    }  # fmt: skip
    save_compact(compact, tmp_path)
    x = torch.randn(3, 3, 9, 4)  # of another size
    assert torch.equal(load_compact(tmp_path, Residual(in_place=in_place))(x), compact.model.eval()(x))


def test_constants_of_a_branch_are_added_still_and_cut_with_the_stream(tmp_path: Path) -> None:
    net = Residual((0.5, -1.0, 2.0, 0.25)).eval()
    compact = shrink(net, EXAMPLE)
    assert compact.certificate["branches"] == [{"side": "two", "replaced_by": "its constants"}]
    constants = compact.model.get_parameter("constant_two.weight")
    assert constants.shape == (1, 4, 1, 1) and constants.flatten().tolist() == [0.5, -1.0, 2.0, 0.25]
    assert difference(net, compact.model, EXAMPLE) < 1e-12
    assert macs(compact.model, EXAMPLE) == 6 * 5 * 3 * 4 * 9 + 4 * 2
    with torch.no_grad():  # nobody reads channel 2 any more
        compact.model.get_parameter("head.weight")[:, 2] = 0
    again = shrink(compact.model, EXAMPLE)
    assert again.model.get_parameter("constant_two.weight").flatten().tolist() == [0.5, -1.0, 0.25]
    save_compact(again, tmp_path)
    x = torch.randn(3, 3, 6, 5)
    assert torch.equal(load_compact(tmp_path, Residual())(x), again.model.eval()(x))
    with pytest.raises(UserError, match="leaves out nowhere"):
        apply_plan(Residual(), compact.plan.model_copy(update={"branches": {"nowhere": True}}))


def test_a_branch_stays_whose_network_is_frozen_in_part_and_one_that_varies() -> None:
    frozen = shrink(Residual().eval(), EXAMPLE, freeze=["one"])
    assert frozen.certificate["branches"] == [] and frozen.model.get_parameter("one.weight").shape[0] == 6
    net = Residual().eval()
    with torch.no_grad():
        net.two.weight[1, 0, 0, 0] = 1.0
    varying = shrink(net, EXAMPLE)
    assert varying.certificate["branches"] == [] and difference(net, varying.model, EXAMPLE) < 1e-12


class Pooled(nn.Module):
    """Channels 2 and 3 of `a` are 0.5 and 1; output 0 of `b` reads them alone, through zero padding."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.c = nn.Conv2d(5, 5, 3, padding=1) if again else nn.Identity()
        self.norm, self.pool, self.head = nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Linear(5, 3)
        with torch.no_grad():
            self.a.weight[2:], self.b.weight[0, :2], self.b.weight[1:, 2:] = 0, 0, 0
            self.a.bias[2:] = torch.tensor([0.5, 1.0])  # type: ignore[index]
            self.norm.weight.uniform_(0.5, 2.0)
            self.norm.bias.uniform_(-0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.c(self.b(torch.relu(self.a(x))))))
        z: Tensor = self.head(self.pool(y).flatten(1))
        return z


def picture(net: Pooled, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Output 0 of `b`, tap by tap."""
    assert net.b.bias is not None
    kernel, out = net.b.weight.detach().double().numpy()[0], np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            taps = [(i, j) for i in range(3) for j in range(3) if 0 <= y + i - 1 < height and 0 <= x + j - 1 < width]
            out[y, x] = net.b.bias[0].item() + sum(0.5 * kernel[2, i, j] + kernel[3, i, j] for i, j in taps)
    return out


def test_a_map_that_depends_on_no_input_folds_into_the_classifiers_bias(tmp_path: Path) -> None:
    net = Pooled().eval()
    with untouched(net):
        compact = shrink(net, EXAMPLE)
    assert [compact.model.get_parameter(f"{name}.weight").shape[0] for name in "ab"] == [2, 4]
    scale = net.norm.weight[0].item() / (1 + net.norm.eps) ** 0.5
    mean = np.maximum(scale * picture(net, 6, 5) + net.norm.bias[0].item(), 0).mean()
    assert mean > 0
    by_hand = net.head.bias + net.head.weight[:, 0] * mean
    assert torch.allclose(compact.model.get_parameter("head.bias"), by_hand, atol=1e-6)
    assert compact.certificate["maps"] == [{"layer": "b", "channels": 1, "removed": 1, "kept_because": None}]
    assert compact.certificate["law"]["max_rel_diff"] < 1e-12 and difference(net, compact.model, EXAMPLE) < 1e-6
    save_compact(compact, tmp_path)
    again = load_compact(tmp_path, Pooled())
    x = torch.randn(3, *EXAMPLE[0].shape[1:])
    assert torch.equal(again(x), compact.model.eval()(x))
    for other in (again, compact.model):  # the constant is another there
        with pytest.raises(ValueError, match="cut for inputs of size 3x6x5"):
            other(torch.randn(1, 3, 8, 8))


def test_a_map_that_a_convolution_reads_stays_and_the_certificate_says_why() -> None:
    net = Pooled(again=True).eval()
    compact = shrink(net, EXAMPLE)
    rows = compact.certificate["maps"]
    assert rows == [{"layer": "b", "channels": 1, "removed": 0, "kept_because": MAP_STAYS}]
    assert compact.model.get_parameter("b.weight").shape[0] == 5 and difference(net, compact.model, EXAMPLE) < 1e-6
    assert compact.model(torch.randn(1, 3, 8, 8)).shape == (1, 3)  # nothing was taken from the size


def test_a_map_of_maps_folds_too() -> None:
    """`c` reads of output 0 alone in its own channel 0: two layers of pictures go."""
    net = Pooled(again=True).eval()
    with torch.no_grad():
        weight = net.get_parameter("c.weight")
        weight[0, 1:], weight[1:, 0] = 0, 0
    compact = shrink(net, EXAMPLE)
    removed = {row["layer"]: row["removed"] for row in compact.certificate["maps"]}
    assert removed == {"b": 0, "c": 1} and compact.model.get_parameter("c.weight").shape[0] == 4
    assert difference(net, compact.model, EXAMPLE) < 1e-6
    second = shrink(compact.model, EXAMPLE)  # nobody reads what made it
    assert second.model.get_parameter("b.weight").shape[0] == 4 and second.plan.sized
    assert difference(net, second.model, EXAMPLE) < 1e-6


def test_a_census_may_name_what_went_with_a_branch() -> None:
    """Training saw units of the branch dead; they are gone with it, and the stream's are held at zero still."""
    net = Residual().eval()
    names = list(anatomy(net, EXAMPLE).watch)
    dead = {name: torch.zeros(width, dtype=torch.bool) for name, width in anatomy(net, EXAMPLE).watch.items()}
    inside = next(name for name in names if dead[name].numel() == 6)
    dead[inside][:3] = True
    compact = shrink(net, EXAMPLE, dead)
    assert [row["side"] for row in compact.certificate["branches"]] == ["two"]
    assert difference(net, compact.model, EXAMPLE) < 1e-12
    analysis, choice, _ = cut_of(settle(trace(net, EXAMPLE)), dead)
    evidence = Confirmation(dead, 9, 0, {name: torch.ones(len(mask)) for name, mask in dead.items()}, ())
    evidence_of_groups(compact.certificate["groups"], analysis, choice, evidence)
    assert evidence.document()["largest_activation"] == {inside: 1.0}
    with pytest.raises(UserError, match="no tensor of the network is named nowhere"):
        shrink(net, EXAMPLE, {"nowhere": torch.ones(2, dtype=torch.bool)})
