"""The coverage benchmark: how channels are killed and counted, what a summary says, and what a promise is."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.coverage import __main__ as coverage
from benchmarks.coverage import cut, zoo
from benchmarks.coverage.zoo import Network, images


class Net(nn.Module):
    """Three layers; the last makes the outputs. `held` is a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)
        self.token = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.head = nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.a(x)))
        return self.head((self.b(y) + self.token).mean((2, 3)).cumsum(1))  # type: ignore[no-any-return]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.LIBRARIES, "own", lambda name: Network(Net(), images(16), "head"))


def test_three_of_eight_die_everywhere_but_in_the_outputs() -> None:
    net, dead = Network(Net(), images(16), "head"), cut.pattern(0)
    layers = cut.kill(net, dead)
    assert int(dead.sum()) == 3 and torch.equal(dead, cut.pattern(0)) and set(layers) == {"a", "b"}
    model: Any = net.model
    assert layers["a"].tolist() == [*dead.tolist(), *dead.tolist()]
    for tensor, mask in ((model.a.weight, layers["a"]), (model.norm.weight, layers["a"]), (model.b.bias, dead)):
        assert not tensor[mask].any() and bool(tensor[~mask].all())
    assert not model.token[0, dead].any() and bool(model.head.weight.all())


def test_a_point_says_what_goes_and_why_the_rest_stays(tiny: None) -> None:
    """Six of a's sixteen go; b's three enter a sum over channels that depends on their places."""
    point = cut.measure("own:net", 1.0, 0, 1)
    assert (point["outcome"], point["dead"], point["gone"], point["layers"]) == ("exact", 9, 6, {"b": 3})
    assert point["stays"] == {"no rule for cumsum": 3} and point["rel_diff"] < 1e-12
    assert cut.measure("own:net", 0.0001, 0, 1)["outcome"] == "too large"


def test_what_raises_or_lasts_is_a_point_too(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "shrink", lambda *arguments, **more: 1 / 0)
    point = cut.measure("own:net", 1.0, 0, 1)
    assert (point["outcome"], point["reason"]) == ("error", "ZeroDivisionError: division by zero")
    monkeypatch.setattr(coverage, "measure", lambda *arguments: time.sleep(30))
    assert coverage.measured("own:net", 0.1, 1.0, 0)["outcome"] == "over time"
    monkeypatch.setattr(coverage, "measure", lambda *arguments: exit(3))
    assert coverage.measured("own:net", 20.0, 1.0, 0)["reason"] == "the process ended with 3"


def point(network: str, outcome: str = "exact", dead: int = 100, gone: int = 100, **more: Any) -> dict[str, Any]:
    return {"network": network, "outcome": outcome, "dead": dead, "gone": gone, "cut_s": 0.1, "law_s": 0.4, **more}


def test_a_summary_counts_channels_and_networks() -> None:
    points = [
        point("timm:a"), point("timm:b", gone=90, stays={"x": 10}), point("ultralytics:c", stays={"x": 2, "y": 50}),
        {"network": "timm:d", "outcome": "error", "reason": "r"}, {"network": "timm:e", "outcome": "too large"},
    ]  # fmt: skip
    timm, ultralytics, every = coverage.summary(points)
    assert (timm["networks"], timm["exact"], timm["error"], timm["too_large"]) == (2, 2, 1, 1)
    assert timm["gone_pct"] == pytest.approx(95.0) and timm["networks_97_pct"] == 50.0
    assert every["dead"] == 300 and ultralytics["gone_pct"] == 100.0
    assert coverage.reasons(points) == [
        {"stays_because": "y", "channels": 50, "in_networks": 1},
        {"stays_because": "x", "channels": 12, "in_networks": 2},
    ]
    assert coverage.promises(points) == ["1 networks: error", "96.67 % of the dead channels go, not 97"]


def test_the_law_has_five_times_the_time_of_the_cut() -> None:
    name = coverage.TIMED[0]
    assert coverage.promises([point(name)]) == [] and coverage.times([point(name), point("timm:a")]) == [
        {"timed": name, "cut_alone_s": 0.1, "the_law_s": 0.4, "law_over_cut": 4.0}
    ]
    (missed,) = coverage.promises([point(name, law_s=0.6)])
    assert missed == "torchvision:resnet50: the law takes 6 times the cut, not 5"


def test_every_name_has_a_library_and_stands_once() -> None:
    names = zoo.specs()
    assert len(set(names)) == len(names) > 90
    assert {name.partition(":")[0] for name in names} <= set(zoo.LIBRARIES)
