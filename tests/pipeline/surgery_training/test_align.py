"""The alignment that is chosen, and what the certificate says each one costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import cli
from pipeline import config as tree
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.stages import Run
from pipeline.stages.surgery import where_timed
from pipeline.surgery import align
from pipeline.surgery.align import DENSE, Candidate, Timing, align_by_timing, cut_aligned, distinct, timing_of, winner
from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.shrink import cut_of, finish, shrink
from pipeline.surgery.trace import trace
from runtime.backends import TensorSpec, openvino
from runtime.errors import UserError
from runtime.measure.latency import Running
from tests.pipeline.surgery_training.nets import kill
from tests.runtime.measure.test_latency import Clock, Timed


def plain() -> nn.Sequential:
    """(B, 3, 8, 8) -> (B, 4): 20 and 12 channels, of which 9 and 4 live."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    kill(model, {"1": list(range(9, 20)), "4": list(range(8))})
    return model.eval()


EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def analysed() -> Analysis:
    return cut_of(trace(plain(), EXAMPLE), None)[0]


def samples() -> torch.Tensor:
    return torch.randn((5, 3, 8, 8), generator=torch.Generator().manual_seed(3))


def test_candidates_that_keep_the_same_are_one() -> None:
    """9 and 4 live of 20 and 12: 8 keeps 16 + 8, 16 keeps 16 + 12, 32 everything, 4 keeps 12 + 4, 2 keeps 10 + 4."""
    found = distinct(analysed(), (8, 4, 1, 16, 32, 2))
    assert [c.label for c in found] == ["1", "2", "4", "8", "16", "32, dense"]
    assert [c.channels for c in found] == [9 + 4, 10 + 4, 12 + 4, 16 + 8, 16 + 12, 20 + 12]
    assert found[-1].sizes == [32, DENSE]


def candidate(label: int, channels: int, rounds: list[float], best_ms: float | None = None) -> Candidate:
    made = Candidate([label], channels, None, None, Path(), rounds)  # type: ignore[arg-type]
    made.best_ms = min(rounds, default=math.inf) if best_ms is None else best_ms
    return made


@pytest.mark.parametrize(
    ("rounds", "chosen"),
    [
        ([[3.0], [1.0], [2.0]], 8),
        ([[1.009, 1.009], [1.0, 1.0], [1.0, 1.0]], 1),  # a tie: the smaller
        ([[1.011, 1.011], [1.0, 1.0], [1.0, 1.0]], 8),
        ([[1.2, 9.0, 1.2], [1.1, 8.0, 1.1], [1.0, 9.9, 1.0]], DENSE),  # one round on a busy machine
        ([[0.5], [1.0, 2.0], [1.1, 2.2]], 8),  # the first was given up on
    ],
)
def test_the_fastest_wins_and_of_equals_the_smaller(rounds: list[list[float]], chosen: int) -> None:
    made = [candidate(size, n, r) for size, n, r in zip((1, 8, DENSE), (10, 16, 32), rounds, strict=True)]
    best = winner(made)
    assert best.sizes == [chosen]
    assert winner(made[::-1]).sizes == [chosen]


def test_only_what_can_still_win_is_timed_again() -> None:
    """The second's fastest launch is 1.05 times the best one's median: noise may have made it slow."""
    made = [candidate(1, 5, [9.0], 8.0), candidate(4, 6, [1.4], 1.05), candidate(8, 7, [1.0]), candidate(16, 8, [1.2])]
    assert [c.sizes for c in align.hopeful(made)] == [[4], [8]]
    made[2].rounds.append(1.0)
    made[1].rounds.append(1.3)
    assert [c.sizes for c in align.hopeful(made)] == [[4], [8]]


class Rounds:
    """Sessions on a clock of their own: a launch costs what `cost` says in ms, and opening one takes `opening_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: dict[str, float], opening_s: float = 0.0) -> None:
        self.cost, self.opening_s, self.clock = cost, opening_s, Clock()
        self.doors: list[str] = []
        monkeypatch.setattr(align, "_session", self._session)
        monkeypatch.setattr(align, "Running", partial(Running, clock=self.clock))

    def candidates(self) -> list[Candidate]:
        made = [candidate(i, i, []) for i in range(len(self.cost))]
        for one, name in zip(made, self.cost, strict=True):
            one.path = Path(name)
        return made

    def _session(self, path: Path, timing: Timing) -> Any:
        self.doors.append(path.name)
        self.clock.now += self.opening_s * 1e9
        return Opened(path.name, self.clock, lambda _: self.cost[path.name] * 1e6, self.doors)


class Opened(Timed):
    def __init__(self, name: str, clock: Clock, duration: Any, doors: list[str]) -> None:
        super().__init__(name, clock, duration, inputs=(TensorSpec("input", (None,), "float32"),))
        self.doors = doors

    def bind(self, feeds: Mapping[str, Any]) -> None:
        assert set(feeds) == {"input"}

    def close(self) -> None:
        self.doors.append(f"-{self.name}")


def test_rounds_turn_the_order_and_leave_the_hopeless_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Rounds(monkeypatch, {"a": 1.0, "b": 1.05, "c": 4.0, "d": 1.02})
    made, said = seen.candidates(), list[str]()
    timing = Timing(rounds=3, min_blocks=7, time_limit_s=600.0)
    assert align.time_in_turn(made, np.zeros(3, np.float32), timing, said.append) == ("fake", "cpu")
    opened = "".join(door for door in seen.doors if not door.startswith("-"))
    assert opened[1:] == "abcd" + "bda" + "dab"  # the first alone says what it is fed
    assert sorted(door[1:] for door in seen.doors if door.startswith("-")) == sorted(opened)
    assert [len(c.rounds) for c in made] == [3, 3, 1, 3] and [c.p50_ms for c in made] == [1.0, 1.05, 4.0, 1.02]
    assert said[0] == "align: timing 4 candidates, round 1 of at most 3" and len(said) == 3


@pytest.mark.parametrize(("opening_s", "rounds"), [(0.0, 10), (0.7, 6), (4.0, 5)])
def test_rounds_end_with_the_time_but_not_before_the_fifth(
    monkeypatch: pytest.MonkeyPatch, opening_s: float, rounds: int
) -> None:
    """In 10 s: two sessions that open in 0.7 s each and work for 0.4 s are opened a sixth time after 9 s, not again."""
    seen = Rounds(monkeypatch, {"a": 1.0, "b": 1.0}, opening_s)
    made = seen.candidates()
    timing = Timing(rounds=10, min_blocks=7, time_limit_s=10.0)
    align.time_in_turn(made, np.zeros(3, np.float32), timing, lambda _: None)
    assert [len(c.rounds) for c in made] == [rounds, rounds]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_measured_for_real(tmp_path: Path, backend: str) -> None:
    """Every candidate has figures, and the cut handed back is the one that was chosen."""
    pytest.importorskip(backend)
    analysis = analysed()
    timing = Timing(4, 1, "cpu", backend, rounds=2, min_blocks=5, time_limit_s=0.5)
    chosen, choice, cut = align_by_timing(analysis, samples(), timing, candidates=(1, 8), folder=tmp_path)
    document = chosen.document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert {k: document[k] for k in ("backend", "device", "threads", "batch")} == {
        "backend": backend, "device": "cpu", "threads": 1, "batch": 4,
    }  # fmt: skip
    rows = document["candidates"]
    own = [("per layer", 16)] if backend == "onnxruntime" else []  # 12 that a convolution reads, and 4
    assert [(r["align"], r["channels"]) for r in rows] == [*own, ("1", 13), ("8", 24), ("dense", 32)]
    assert all(0 < r["p50_ms_low"] <= r["p50_ms"] <= r["p50_ms_high"] and 1 <= r["rounds"] <= 2 for r in rows)
    best = [r for r in rows if r["chosen"]]
    assert len(best) == 1 and align.NAMES.get(chosen.size, str(chosen.size)) == best[0]["align"]
    compact = finish(plain(), analysis, choice, cut)
    kept = compact.model.get_parameter("0.weight").shape[0] + compact.model.get_parameter("3.weight").shape[0]
    assert kept == best[0]["channels"] and not list(tmp_path.iterdir())


def test_nothing_to_choose_from_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "onnx_from_torch", None)  # nothing is exported
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)).eval()
    traced = trace(model, EXAMPLE)
    _, choice, _, document = cut_aligned(traced, None, "auto", "tied", samples(), Timing())
    assert choice.keep.all() and document is not None and document["backend"] is None
    assert document["candidates"] == [
        {
            "align": "1, 4, 8, 16, 32, dense", "channels": 8, "p50_ms": None, "p50_ms_low": None, "p50_ms_high": None,
            "rounds": 0, "chosen": True,
        }
    ]  # fmt: skip


def test_a_fixed_alignment_is_not_timed_either() -> None:
    analysis, choice, cut, document = cut_aligned(trace(plain(), EXAMPLE), None, 8, "tied", samples(), Timing())
    assert document is None
    same = shrink(plain(), EXAMPLE, align=8).certificate
    assert finish(plain(), analysis, choice, cut).certificate["layers"] == same["layers"]


def test_the_choice_depends_on_how_it_is_timed() -> None:
    """So the stage is done again on another machine, and only with `auto`."""
    fixed = tree.Config()
    auto = fixed.model_copy(update={"surgery": tree.Surgery(align="auto")})
    images = partial(load, fixed.data)
    assert where_timed(Run(fixed, images, "auto", Silent(), "70-check")) == {}
    inputs = where_timed(Run(auto, images, "auto", Silent(), "70-check"))
    assert set(inputs) == {"timing", "machine", "device", "backend", "candidates"}
    assert inputs["candidates"] == [1, 4, 8, 16, 32, "per layer"] and inputs["timing"]["gate_batch"] == 32
    section = tree.Check(batch_sizes=(1, 6), gate_batch=6, threads=3, time_limit_s=9)
    assert timing_of(section, "cuda") == Timing(6, 3, "auto", time_limit_s=27.0)  # three comparisons' worth
    for flavour, backend in (("openvino", "openvino"), ("tensorrt", "onnxruntime"), ("none", "onnxruntime")):
        assert timing_of(section, "cpu", flavour).backend == backend
    openvino = auto.model_copy(update={"engine": tree.Engine(flavour="openvino")})
    assert where_timed(Run(openvino, images, "auto", Silent(), "70-check"))["backend"] == "openvino"
    assert timing_of(tree.Check(), "cpu").time_limit_s == Timing().time_limit_s
    assert timing_of(section, "cpu").device == "cpu"


def test_without_openvino_an_alignment_for_it_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> None:
        raise UserError("openvino is not installed", "OpenVINO", "install openvino")

    monkeypatch.setattr(openvino, "core", absent)
    path = tmp_path / "auto.yaml"
    path.write_text("surgery: {align: auto}\nengine: {flavour: openvino}\n")
    assert cli.command_line(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: openvino is not installed; OpenVINO; install openvino\n"
    assert not (tmp_path / "run").exists()


NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4),
    )
"""


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auto_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    model = importlib.import_module("auto_net").build()
    kill(model, {"1": list(range(9, 20))})
    save_file(model.state_dict(), "w.safetensors")
    words = [
        "shrink",
        "--model",
        "auto_net:build",
        "--weights",
        "w.safetensors",
        "--input-shape",
        "3,8,8",
        "--out",
        "cut",
    ]
    for one in (
        "surgery.align=auto",
        "check.gate_batch=4",
        "check.batch_sizes=[4]",
        "check.threads=1",
        "check.time_limit_s=1",
    ):
        words += ["--set", one]
    assert cli.command_line(words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads(Path("cut/certificate.json").read_text())
    rows = written["alignment"]["candidates"]
    assert [r["align"] for r in rows] == ["1", "4", "8, 16", "32, dense"] and written["alignment"]["batch"] == 4
    assert told["channels_after"] == next(r["channels"] for r in rows if r["chosen"])
