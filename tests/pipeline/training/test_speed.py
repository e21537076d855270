"""The speeds that a training tells are those of its steps: no census, removal, checkpoint or test lies in between.

The device is one that does its work only when it is waited for, and everything takes a time of its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.training import loop, sparsifier
from pipeline.training.census import census
from pipeline.training.compute import Compute
from pipeline.training.log.history import History
from pipeline.training.methods import demp
from pipeline.training.state import without
from tests.pipeline.training.small import SmallNet, joining

COMPILATION, CENSUS, REMOVAL, TEST, CHECKPOINT = 2.0**10, 2.0**12, 2.0**14, 2.0**16, 2.0**18
DENSE, CUT = 4.0, 1.0
BATCH = 100  # 14 steps an epoch


def seconds_of(step: int) -> float:
    """No two sets of steps that follow on each other take as long."""
    return (DENSE if step < 7 else CUT) + step / 64


class Device:
    """A clock, and work that lies before the device; what reads a result waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ahead = 0.0, 0.0
        clock = SimpleNamespace(perf_counter=lambda: self.now, monotonic=lambda: self.now)
        for module in ("log.history", "loop", "sparsifier", "state"):
            monkeypatch.setattr(f"pipeline.training.{module}.time", clock)
        for name in ("cpu", "item"):
            monkeypatch.setattr(Tensor, name, self.waiting(getattr(Tensor, name), 0.0))

    def waiting(self, work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The same work, that takes so long, after all that lies before the device."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.now += self.ahead + seconds
            self.ahead = 0.0
            return work(*args, **kwargs)

        return call


@dataclasses.dataclass(frozen=True)
class Compiling(Compute):
    work: Any = None
    """Called with the seconds of a step."""

    def forward_of(self, network: nn.Module, example: tuple[Tensor, ...]) -> Callable[[Tensor], Any]:
        compiled: list[bool] = []

        def forward(x: Tensor) -> Tensor:
            self.work(0.0 if compiled else COMPILATION)
            compiled.append(True)
            y: Tensor = network(x)
            return y

        return forward


class Checkpoints:
    """Takes its time."""

    def __init__(self, device: Device) -> None:
        self.save = device.waiting(lambda snapshot: self.saved.append(snapshot.step), CHECKPOINT)
        self.saved: list[int] = []


def rows_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> tuple[list[dict[str, Any]], list[int]]:
    """History and checkpoints of a DemP training that removes its one dead channel after step 7."""
    device, steps = Device(monkeypatch), iter(range(1000))
    monkeypatch.setattr(demp, "census", device.waiting(census, CENSUS))
    monkeypatch.setattr(sparsifier, "without", device.waiting(without, REMOVAL))
    monkeypatch.setattr(loop, "metric_of", device.waiting(loop.metric_of, TEST))

    def work(seconds: float) -> None:
        device.ahead += seconds + seconds_of(next(steps))

    torch.manual_seed(0)
    network, data = SmallNet(), load(config.Data())
    network.linear = nn.Linear(3, 10)
    with torch.no_grad():
        network.bn1.weight[1], network.bn1.bias[1] = 0.0, -1.0
    section = config.sparse_of(
        **{"epochs": 2, "batch_size": BATCH, "lambda_peak": 1e-7, "lr": 1e-3, "checkpoint_s": 0.0, "prune_every": 7}
        | changes
    )
    training = joining(section, seed=0)
    kept: Any = Checkpoints(device)
    compute = Compiling(torch.device("cpu"), work=work)
    history = History(folder / "history.jsonl")
    loop.Loop(section, network, data, demp.demp(section, training), training, history, Silent(), compute, kept).run()
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()], kept.saved


def images_per_s(*steps: range) -> float:
    each = [seconds_of(step) for part in steps for step in part]
    return BATCH * len(each) / sum(each)


def test_nothing_but_steps_is_in_a_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 0 and step 7 compile. Removals are due after 7 steps, 14 (the end of an epoch) and 21; the first finds a
    channel, the others take a census in vain."""
    rows, saved = rows_of(tmp_path, monkeypatch)
    assert saved == [7, 14, 21, 28]
    assert [len(row["removals"]) for row in rows] == [0, 1], "too few steps of the first epoch follow it"
    removal = rows[1]["removals"][0]
    assert (removal["step"], removal["channels"], removal["seconds"]) == (7, 1, REMOVAL + CENSUS)
    assert removal["images_per_s_before"] == images_per_s(range(1, 7))
    assert removal["images_per_s_after"] == images_per_s(range(8, 14), range(14, 21))
    assert removal["step_ms_before"] == 1000 * BATCH / images_per_s(range(1, 7))
    assert removal["step_ms_after"] == pytest.approx(1000 * BATCH / images_per_s(range(8, 21)), rel=1e-12)
    assert rows[0]["seconds"] == sum(map(seconds_of, [*range(1, 7), *range(8, 14)]))
    assert rows[0]["images_per_s"] == images_per_s(range(1, 7), range(8, 14))
    assert rows[1]["images_per_s"] == images_per_s(range(14, 28))


def test_where_a_census_follows_each_step_none_that_compiles_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, saved = rows_of(tmp_path, monkeypatch, prune_every=1, epochs=1)
    assert saved == list(range(1, 15))
    removal = rows[0]["removals"][0]
    assert (removal["step"], removal["images_per_s_before"], removal["step_ms_before"]) == (1, None, None)
    assert removal["step_ms_after"] == 1000 * sum(map(seconds_of, range(2, 11))) / 9
