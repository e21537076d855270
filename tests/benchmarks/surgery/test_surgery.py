"""Surgery's benchmark: what a summary says of points, the promises, and how a point is judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.surgery.__main__ import promises, row_of, summary
from benchmarks.surgery.cutting import Removed, timed, verdict
from benchmarks.surgery.networks import dead_indices, kill


def point(model: str, tool: str, outcome: str, cut_s: float | None = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"model": model, "tool": tool, "outcome": outcome, "params": 10_000_000, **more}
    if cut_s is not None:
        found |= {"cut_s": cut_s, "memory_mib": 100.0}
    return found


POINTS = [
    point("a", "demport", "exact", 0.1),
    point("a", "torch-pruning", "exact", 0.4),
    point("b", "demport", "exact", 0.2),
    point("b", "torch-pruning", "law broken", 5.0),
    point("c", "demport", "exact", 1.5, params=200_000_000),
    point("c", "torch-pruning", "time limit", stopped_s=30),
    point("d", "torch-pruning", "error"),
    point("d", "demport", "exact", 0.3),
]


def test_the_summary_counts_outcomes_and_compares_what_both_finished() -> None:
    """4 and 25 times as long: 10 in the geometric mean; with 30 s over 1.5 s on the third, (4 x 25 x 20) ** (1 / 3)."""
    ours, theirs = summary(POINTS)
    assert (ours["networks"], ours["exact"], ours["exact_pct"]) == (4, 4, 100.0)
    assert (theirs["exact"], theirs["law_broken"], theirs["errors"], theirs["over_time"]) == (1, 1, 1, 1)
    assert theirs["slower_than_demport"] == pytest.approx(10.0)
    assert theirs["slower_at_least"] == pytest.approx(2000 ** (1 / 3))
    assert ours["slower_than_demport"] == ours["slower_at_least"] == pytest.approx(1.0)
    assert ours["within_1_s_pct"] == 100.0 and ours["slowest_s"] == 1.5
    assert ours["median_s"] == pytest.approx(0.25)


def test_promises_that_hold_are_silent_and_those_missed_are_told() -> None:
    assert promises(summary(POINTS)) == []
    slow = [point("a", "demport", "law broken", 6.0), point("a", "torch-pruning", "exact", 6.0)]
    told = promises(summary(slow))
    assert len(told) == 4
    assert any("exact on 0 of 1" in text for text in told) and any("slowest_s is 6" in text for text in told)
    assert row_of("demport", {"a": slow[0]}, {"a": slow[0]})["within_1_s_pct"] == 0.0


def test_a_verdict_needs_equal_shapes_and_logits() -> None:
    want = torch.tensor([[1.0, -2.0], [0.5, 2.0]])
    assert verdict(want, want * (1 + 1e-5))["outcome"] == "exact"
    assert verdict(want, want + 0.01)["outcome"] == "law broken"
    assert verdict(want, want[:, :1])["outcome"] == "error"
    with pytest.raises(AssertionError, match="a void task"):
        verdict(torch.ones(2, 2), torch.ones(2, 2))


def test_the_dead_are_three_in_ten_and_zero() -> None:
    assert dead_indices(20).nonzero().flatten().tolist() == [2, 5, 8, 12, 15, 18]
    model = nn.Sequential(nn.Conv2d(3, 20, 1), nn.BatchNorm2d(20))
    kill(model)
    for name in ("0.weight", "0.bias", "1.weight"):
        assert torch.equal(model.state_dict()[name].reshape(20, -1).abs().sum(1) == 0, dead_indices(20))


def test_removed_channels_are_zeroed_by_their_first_index() -> None:
    """Two cuts of one layer: the second counts what the first has left."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def dependency(i: int, name: str) -> Any:
        return SimpleNamespace(target=SimpleNamespace(module=model[i]), handler=SimpleNamespace(__name__=name))

    removed = Removed(model)
    removed.note([(dependency(0, "prune_conv_out_channels"), [1, 4])])
    removed.note([(dependency(0, "prune_conv_out_channels"), [1]), (dependency(2, "prune_conv_in_channels"), [1])])
    assert sorted(removed.gone["0"]) == [1, 2, 4] and "2" not in removed.gone
    left = removed.zeroed(model).state_dict()["0.weight"].flatten(1).abs().sum(1)
    assert (left == 0).nonzero().flatten().tolist() == [1, 2, 4]


def test_a_cut_is_timed_on_copies() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    given: list[nn.Module] = []

    def tool(network: nn.Module) -> tuple[nn.Module, Any]:
        given.append(network)
        return network, lambda dense: dense

    compact, _, figures = timed(tool, model, 5)
    assert len(given) == 3 and all(network is not model for network in given)
    assert compact is given[0] and figures["params_after"] == 15 and 0 <= figures["cut_s"] < 1
