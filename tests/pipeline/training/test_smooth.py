"""Networks whose activations let a channel learn at 0: steered, their dead channels leave on the way all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import config
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.training.train import Setting, train_sparse, trained_network
from runtime.macs import macs

MODEL = config.Model(name="tests.pipeline.training.small:smooth")
SHAPE = (1, 8, 8)


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def trained(out: Path, **keys: Any) -> tuple[Trained, list[dict[str, Any]], list[str]]:
    """With its removals and its notes."""
    progress = Noting()
    section = config.sparse_of(**{"epochs": 4, "batch_size": 100, **keys})
    told = train_sparse(section, Setting(MODEL, load(config.Data()), 1, 1, "cpu", out, progress))
    rows = [json.loads(line) for line in told.history.read_text().splitlines()]
    return told, [removal for row in rows for removal in row["removals"]], progress.notes


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 0.01)])
def test_steered_channels_leave_while_the_training_goes_on(optimizer: str, lr: float, tmp_path: Path) -> None:
    told, removals, notes = trained(tmp_path, target={"macs": 0.4}, optimizer=optimizer, lr=lr)
    assert len(removals) >= 5 and not any("out of reach" in note for note in notes)
    assert max(removal["max_rel_diff"] for removal in removals) < 1e-6
    network = trained_network(MODEL, load(config.Data()), told)
    dense = 64 * 9 * (12 + 2 * 144) + 120
    assert told.reached is not None and macs(network, SHAPE) / dense == pytest.approx(told.reached["macs"], rel=0.01)
    assert told.reached["macs"] == pytest.approx(0.4, rel=0.07)
    assert told.accuracy > 0.5


def test_where_dead_channels_have_to_stay_that_is_told_once(tmp_path: Path) -> None:
    """A channel that is negative on average is dead to the census, and learns."""
    _, removals, notes = trained(tmp_path, lambda_peak=0.3, prune_every=10)
    assert not removals
    (note,) = notes
    assert "dead channels stay for now: a gradient reaches them" in note
