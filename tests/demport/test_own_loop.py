"""The example of a loop of one's own, executed, and a restart in its middle."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import demport
from tests.conftest import REPOSITORY

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4


def test_the_example_runs_and_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = REPOSITORY / "examples" / "own_loop.py"
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(example))
    assert len(example.read_text().splitlines()) <= 40
    assert names["compact"].certificate["law"]["max_rel_diff"] <= 1e-9
    assert sum(p.numel() for p in names["compact"].model.parameters()) < 9000


def started(groups: bool) -> demport.Sparsifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    norms = [p for m in network if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in network.parameters() if all(p is not norm for norm in norms)]
    parts = [{"params": others, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0, "lr": 0.01}]
    optimizer = torch.optim.AdamW(parts if groups else network.parameters(), lr=0.02)
    return demport.sparsify(network, optimizer, (X[:2],), steps=40, target={"macs": 0.4})


def steps(sparse: demport.Sparsifier, count: int) -> list[bool]:
    removed = []
    for _ in range(count):
        loss = nn.functional.cross_entropy(sparse.network(X), Y) + sparse.penalty()
        sparse.optimizer.zero_grad()
        torch.autograd.backward(loss)
        sparse.optimizer.step()
        removed.append(sparse.step(X))
    return removed


@pytest.mark.parametrize("groups", [False, True], ids=["one group", "no decay on norms"])
def test_a_restart_ends_with_the_same_weights(groups: bool, tmp_path: Path) -> None:
    whole = started(groups)
    assert any(steps(whole, 18))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    steps(whole, 22)
    again = started(groups)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(again.optimizer.param_groups) == (2 if groups else 1)
    steps(again, 22)
    pairs = zip(whole.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    compact = whole.finish()
    assert compact.certificate["law"]["max_rel_diff"] <= 1e-9
    assert sum(p.numel() for p in compact.model.parameters()) < 760


def test_wrong_options_are_one_line() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(demport.UserError, match="no batch norm"):
        demport.sparsify(network, optimizer, (X[:2],), steps=5)
    with pytest.raises(demport.UserError, match="demp: `lambda_peek` is 1; lambda_peak, "):
        demport.sparsify(network, optimizer, (X[:2],), steps=5, options={"lambda_peek": 1})
    with pytest.raises(demport.UserError, match="steps is 0"):
        demport.sparsify(network, optimizer, (X[:2],), steps=0)
