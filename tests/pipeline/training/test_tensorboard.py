"""Events that TensorBoard can read, or one line that says why not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from pipeline.training.tensorboard import TensorBoard, scalars
from runtime.errors import UserError

ROW = {
    "epoch": 3, "loss": 0.5, "accuracy": 0.75, "dead": None, "dead_by_layer": {"relu": 2, "relu_1": 0},
    "whole": "a reason", "removals": [{"channels": 4}, {"channels": 3}], "lambda": 0.01,
}  # fmt: skip


def test_every_number_of_a_row_is_a_scalar() -> None:
    assert scalars(ROW) == {
        "loss": 0.5, "accuracy": 0.75, "dead_by_layer/relu": 2.0, "dead_by_layer/relu_1": 0.0, "lambda": 0.01,
        "removed": 7.0,
    }  # fmt: skip
    assert scalars({"epoch": 1}) == {"removed": 0.0}


def test_events_are_what_was_written(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("the tensorboard extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.row(ROW)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {e.step for e in events.Scalars("accuracy")} == {3}
    assert [e.value for e in events.Scalars("dead_by_layer/relu")] == [2.0]


def test_without_the_extra_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="tensorboard is asked for and cannot be imported") as caught:
        TensorBoard(tmp_path)
    assert "pip install tensorboard" in caught.value.remedy
    assert not list(tmp_path.iterdir())
