"""The networks of the papers, and which promises points keep."""

from __future__ import annotations

import pytest
import torch

from benchmarks.published.__main__ import CHECKS
from benchmarks.published.networks import lenet5, mlp
from benchmarks.published.promises import ORDERS, broken, promises
from runtime.macs import params

SHAPE = (1, 28, 28)


def point(check: str, run: str, error: float, seed: int = 0, **more: object) -> dict[str, object]:
    return {"check": check, "run": run, "seed": seed, "error_pct": error, **more}


def test_networks_have_the_sizes_of_the_papers() -> None:
    assert params(mlp(num_classes=10, input_shape=SHAPE)) == 266_610
    assert params(lenet5(num_classes=10, input_shape=SHAPE)) == 431_080
    some = mlp(num_classes=10, input_shape=SHAPE, pixels=[3, 5, 700], widths=[4])
    x = torch.rand(2, *SHAPE)
    assert params(some) == 3 * 4 + 4 + 4 * 10 + 10
    assert torch.equal(some.get_submodule("0")(x), x.flatten(1)[:, [3, 5, 700]])


def test_means_over_seeds_keep_or_break_a_promise() -> None:
    rigl = "rigl 99/89/0 %"
    assert broken([point("rigl", rigl, 1.5), point("rigl", rigl, 2.0, 1)]) == []
    (text,) = broken([point("rigl", rigl, 1.5), point("rigl", rigl, 2.1, 1)])
    assert text == "rigl, rigl 99/89/0 %: error 1.48 %, measured 1.80"
    lottery = [point("lottery_ticket", f"ticket, round {n}", e) for n, e in ((0, 2.0), (7, 1.8), (15, 2.2))]
    assert [holds for _, holds in promises(lottery)] == [True]
    assert len(broken([*lottery, point("lottery_ticket", "reinit, round 7", 1.7)])) == 1
    assert broken([]) == []


def test_order_and_widths() -> None:
    assert {check for check, _, _ in ORDERS} <= CHECKS.keys()
    good = [point("ispasp", run, e) for run, e in (("ispasp", 3.0), ("magnitude", 3.1), ("random", 5.0))]
    assert broken(good) == []
    good[0]["error_pct"] = 3.2
    assert broken(good) == ["ispasp: ispasp no worse than magnitude, 3.20 and 3.10 %"]
    runs = [f"from {w}, theta {t}" for w in ("300-100", "600-200") for t in ("0.8", "0.5")]
    same = [point("variational", run, 1.5, first=100 + n, second=40) for n, run in enumerate(runs)]
    assert broken(same) == []
    assert len(promises(same)) == 4 + 2
    assert len(promises([*same[:3], {**same[3], "error_pct": 90.0}])) == 4  # a collapsed network's widths say nothing
    same[3]["first"] = 150
    assert broken(same) == ["variational: first widths within 10 %, 100 to 150"]


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_says_what_it_does(name: str) -> None:
    assert CHECKS[name].__doc__
    assert CHECKS[name].__doc__.endswith(".")  # type: ignore[union-attr]
