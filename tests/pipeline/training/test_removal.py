"""Channels leave while the training goes on."""

from __future__ import annotations

import dataclasses
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.data import load
from pipeline.models import build
from pipeline.models.weights import save_weights
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.stages import Run
from pipeline.stages.surgery import surgery
from pipeline.surgery.compact import load_compact
from pipeline.surgery.plan import read_plan
from pipeline.surgery.watch import anatomy
from pipeline.training import sparsifier
from pipeline.training.compute import Compute
from pipeline.training.loop import Loop
from pipeline.training.optimizer import optimizer_for
from pipeline.training.state import TrainState, state_of, without
from pipeline.training.train import Setting, train_sparse, trained_network
from runtime.macs import macs

SHAPE = (1, 8, 8)
MODEL = config.Model(args={"width": 8})
CPU = Compute(torch.device("cpu"))


class Recorder(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def trained(out: Path, model: config.Model = MODEL, progress: Silent | None = None, **changes: object) -> Trained:
    section = config.sparse_of(**{"epochs": 12, "batch_size": 100, "lambda_peak": 0.3, "prune_every": 28} | changes)
    out.mkdir(exist_ok=True)
    return train_sparse(section, Setting(model, load(config.Data()), 1, 1, "cpu", out, progress or Silent()))


def test_what_was_removed_is_in_plan_history_and_certificate(tmp_path: Path) -> None:
    run = trained(tmp_path / "demp")
    assert run.plan is not None
    rows = [json.loads(line) for line in run.history.read_text().splitlines()]
    removals = [r for row in rows for r in row["removals"]]
    assert removals
    assert all(r["step"] % 28 == 0 and r["channels"] > 0 and r["images_per_s_after"] > 0 for r in removals)
    assert all(0 <= r["max_rel_diff"] <= 1e-6 for r in removals)
    network = trained_network(MODEL, load(config.Data()), run)
    assert rows[-1]["macs"] == removals[-1]["macs"] == macs(network, SHAPE)
    assert rows[-1]["params"] == sum(p.numel() for p in network.parameters()) < rows[0]["params"]
    gone = sum(r["channels"] for r in removals)
    left = {name: m.out_channels for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    channels, removed = rows[-1]["channels_by_layer"], rows[-1]["removed_by_layer"]
    assert {name: channels[name] - removed[name] for name in channels} == {name: left[name] for name in channels}
    assert not any(rows[0]["removed_by_layer"].values())
    assert run.channels - removals[-1]["left"] == gone <= run.dead
    out = tmp_path / "cut"
    out.mkdir()
    settings = config.Config(model=MODEL, threads=1, surgery=config.Surgery(align=1))
    made = surgery(Run(settings, lambda: load(config.Data()), "cpu", Silent(), "30-surgery"), run, out)
    assert (made.channels_before, made.channels_dead) == (run.channels, run.dead)
    certificate = json.loads(made.certificate.read_text())
    assert certificate["training"]["removed"] == gone
    channels = certificate["channels"]
    assert channels["before"] - channels["after"] == gone + sum(certificate["evidence"].values())
    by_layer = {row["layer"]: (row["before"], row["after"]) for row in certificate["layers"]}
    compact = load_compact(out)
    assert by_layer["conv1"] == (8, compact.get_submodule("conv1").out_channels)
    assert read_plan(made.plan).widths["conv1.weight"] == 8 if "conv1.weight" in read_plan(made.plan).widths else True


@pytest.mark.parametrize("changes", [{}, {"target": {"macs": 0.4}}], ids=["fixed lambda", "steered"])
def test_networks_that_were_cut_are_gone_before_the_next_step(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their memory is to be of use to those that are left; the dense one's too."""
    cut_before: list[weakref.ref[nn.Module]] = []
    left: list[int] = []
    step, removed = Loop._step, without

    def noted(state: TrainState, *arguments: Any) -> tuple[TrainState, float]:
        after, difference = removed(state, *arguments)
        if after is not state:
            cut_before.append(weakref.ref(state.network))
        return after, difference

    def counted(self: Loop, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        left.append(sum(network() is not None for network in cut_before))
        return step(self, x, y)

    monkeypatch.setattr(sparsifier, "without", noted)
    monkeypatch.setattr(Loop, "_step", counted)
    trained(tmp_path, **changes)
    assert len(cut_before) >= 2
    assert set(left) == {0}


def test_training_without_removals_ends_with_the_whole_network(tmp_path: Path) -> None:
    run = trained(tmp_path, prune_every="end")
    assert run.plan is None
    rows = [json.loads(line) for line in run.history.read_text().splitlines()]
    assert not any(row["removals"] for row in rows)
    assert len({row["macs"] for row in rows}) == 1


def test_a_removal_keeps_multiples_for_surgery_to_decide_on(tmp_path: Path) -> None:
    section = config.sparse_of(**{"epochs": 8, "batch_size": 100, "lambda_peak": 0.3, "prune_every": 28})
    task = Setting(config.Model(args={"width": 16}), load(config.Data()), 1, 1, "cpu", tmp_path, Silent())
    run = train_sparse(section, task, align=8)
    network = trained_network(task.model, task.data, run)
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert sum(widths) < 16 * 3 + 32 * 3 + 64 * 3


def state_with_dead(
    optimizer: str = "sgd", compute: Compute = CPU
) -> tuple[TrainState, dict[str, torch.Tensor], torch.Tensor]:
    """Two layers; channel 1 of the first is dead and stays so."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Flatten(), nn.Linear(3 * 36, 10),
    )  # fmt: skip
    with torch.no_grad():
        network.get_parameter("1.weight")[1] = 0.0
        network.get_parameter("1.bias")[1] = -1.0
    compute.placed(network.train())
    section = config.Training.model_validate({"optimizer": optimizer})
    state = state_of(network, optimizer_for(section, list(network.parameters())), (torch.zeros(2, *SHAPE),), compute)
    x = torch.randn(32, *SHAPE)
    network(compute.images(x)).square().mean().backward()
    state.optimizer.step(0.1)
    dead = {name: torch.zeros(width, dtype=torch.bool) for name, width in state.anatomy.watch.items()}
    dead[min(dead)][1] = True
    return state, dead, x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_next_step_is_that_of_the_whole_network(optimizer: str, channels_last: bool) -> None:
    """Also where weights lie as (N, C, H, W) and not so in memory: the moments have to lie like them."""
    compute = dataclasses.replace(CPU, channels_last=channels_last)
    state, dead, x = state_with_dead(optimizer=optimizer, compute=compute)
    after, difference = without(state, dead, (x,), compute)
    assert 0 <= difference <= 1e-6
    assert after.anatomy.channels == state.anatomy.channels - 1
    assert after.macs == state.macs - 1 * 9 * 64 - 3 * 9 * 36
    for one in (state, after):
        one.optimizer.zero_grad()
        one.forward(compute.images(x)).square().mean().backward()
        one.optimizer.step(0.1)
    keep = [0, 2, 3]
    want, got = dict(state.network.named_parameters()), dict(after.network.named_parameters())
    assert torch.allclose(got["0.weight"], want["0.weight"][keep], atol=1e-6)
    assert torch.allclose(got["3.weight"], want["3.weight"][:, keep], atol=1e-6)
    assert torch.allclose(got["7.weight"], want["7.weight"], atol=1e-6)


def test_without_a_channel_that_can_go_the_state_is_the_same() -> None:
    state, dead, x = state_with_dead()
    assert without(state, dead, (x,), CPU, align=4) == (state, 0.0)
    with torch.no_grad():
        state.network.get_parameter("1.bias")[1] = 1.0
    nothing = {name: torch.zeros_like(mask) for name, mask in dead.items()}
    assert without(state, nothing, (x,), CPU)[0] is state


def test_a_network_that_cannot_be_cut_while_it_trains_stays_whole_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demport_test_functional.py").write_text(
        "import torch.nn.functional as F\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.conv, self.bn, self.relu = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()\n"
        "        self.linear = nn.Linear(16 * 36, classes)\n"
        "    def forward(self, x):\n"
        "        x = self.relu(self.bn(self.conv(x))).flatten(1)\n"
        "        return self.linear(F.dropout(x, 0.5, self.training))\n"
        "def build(num_classes):\n    return Net(num_classes)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    progress = Recorder()
    run = trained(tmp_path / "out", config.Model(name="demport_test_functional:build"), progress, lambda_peak=1.0)
    assert run.plan is None
    assert [note for note in progress.notes if note.startswith("dead channels stay until the end: the network has")]
    rows = [json.loads(line) for line in run.history.read_text().splitlines()]
    assert "another training step" in rows[-1]["whole"]
    assert run.dead > 0


def test_units_of_a_state_are_those_of_its_network() -> None:
    state, _, _ = state_with_dead()
    again = anatomy(state.network, (torch.zeros(2, *SHAPE),))
    assert state.anatomy.watch == again.watch
    assert state.macs == macs(state.network, SHAPE)


def test_a_layer_that_dies_as_a_whole_keeps_one_channel_and_that_is_told(tmp_path: Path) -> None:
    network = build(MODEL, num_classes=10, input_shape=SHAPE)
    with torch.no_grad():
        network.get_parameter("layer1.0.bn1.weight").zero_()
        network.get_parameter("layer1.0.bn1.bias").fill_(-1.0)
    save_weights(network, tmp_path / "start.safetensors")
    model = MODEL.model_copy(update={"weights": str(tmp_path / "start.safetensors")})
    progress = Recorder()
    run = trained(tmp_path / "out", model, progress, epochs=2, prune_every=7, lambda_peak=1e-6)
    assert "every channel of layer1_0_relu1 is dead: one stays" in progress.notes
    assert run.plan is not None
    assert len(read_plan(run.plan).layers["layer1.0.conv1.weight"]) == 1
    rows = [json.loads(line) for line in run.history.read_text().splitlines()]
    assert rows[-1]["silent"] == ["layer1_0_relu1"]
