"""Two processes that share each batch train as one does."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline import config
from pipeline.data import load
from pipeline.models import build
from pipeline.models.weights import save_weights
from pipeline.progress import Silent
from pipeline.training.compute.distributed import Ranks, demand_equal_shares, expected_ranks
from pipeline.training.train import Setting, train_sparse
from runtime.errors import UserError

ROOT = Path(__file__).parents[4]
SECTION = {"epochs": 1, "batch_size": 100, "prune_every": 4, "lambda_peak": 0.1, "lr": 0.05}
ONE_OF_TWO = """
import os, sys
from pathlib import Path
from pipeline import config
from pipeline.data import load
from pipeline.progress import PlainProgress
from pipeline.training.loop import Loop
from pipeline.training.compute.distributed import expected_ranks
from pipeline.training.train import Setting, train_sparse
from runtime.errors import UserError
out, weights, kept, dies_at = Path(sys.argv[1]), *sys.argv[2:]
out = out / str(expected_ranks().rank)
out.mkdir(exist_ok=True)
section = config.sparse_of(**{section!r})
model = config.Model(args={{"width": 4}}, weights=weights)
step = Loop._step
def dying(self, *batch):
    if not expected_ranks().first and self.step == int(dies_at):
        os._exit(9)
    return step(self, *batch)
Loop._step = dying
task = Setting(model, load(config.Data()), 1, 1, "cpu", out, PlainProgress(sys.stderr), out / "kept" if kept else None)
try:
    train_sparse(section, task)
except UserError as error:
    sys.exit(f"error: {{error}}")
"""


def torchrun(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return subprocess.run(
        [*launcher, *command], cwd=ROOT, check=False, timeout=120, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def pair(folder: Path, *arguments: str, **changes: object) -> list[subprocess.CompletedProcess[str]]:
    """Both processes without torchrun, which would end the one when the other dies."""
    script = folder / "one_of_two.py"
    script.write_text(ONE_OF_TWO.format(section=SECTION | changes))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), *arguments], cwd=ROOT, env=shared | {"RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        ended = [(process, *process.communicate(timeout=120)) for process in started]
    finally:
        for process in started:
            process.kill()
    return [subprocess.CompletedProcess(p.args, p.returncode, out, err) for p, out, err in ended]


def half_dead(folder: Path) -> Path:
    """Weights of a network of which half of the channels inside blocks are dead from the start."""
    torch.manual_seed(0)
    network = build(config.Model(args={"width": 4}), num_classes=10, input_shape=(1, 8, 8))
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith(".bn1"):
                half = module.weight[: len(module.weight) // 2], module.bias[: len(module.bias) // 2]
                half[0].zero_()
                half[1].fill_(-1.0)
    save_weights(network, folder / "start.safetensors")
    return folder / "start.safetensors"


def test_two_processes_equal_one_with_the_same_batches(tmp_path: Path) -> None:
    script = tmp_path / "one_of_two.py"
    script.write_text(ONE_OF_TWO.format(section=SECTION))
    weights = half_dead(tmp_path)
    done = torchrun(tmp_path, str(script), str(tmp_path), str(weights), "", "-1")
    assert done.returncode == 0, done.stderr[-2000:]
    alone = tmp_path / "alone"
    alone.mkdir()
    model = config.Model(args={"width": 4}, weights=str(weights))
    task = Setting(model, load(config.Data()), 1, 1, "cpu", alone, Silent())
    trained = train_sparse(config.sparse_of(**SECTION), task)
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == [], "one process writes"
    assert trained.plan is not None
    assert (tmp_path / "0" / "plan.json").read_bytes() == trained.plan.read_bytes(), "the same widths"
    first, second = load_file(trained.weights), load_file(tmp_path / "0" / "weights.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = max(1.0, float(value.abs().max()))
        assert float((value.double() - second[name].double()).abs().max()) <= 1e-5 * scale, name


def test_a_lost_process_is_told_and_the_next_training_goes_on_without_its_disk(tmp_path: Path) -> None:
    """Each process keeps its checkpoints where the other does not look; the first alone has any."""
    weights = str(half_dead(tmp_path))
    first, other = pair(tmp_path, weights, "kept", "11", checkpoint_s=0.0)
    assert (first.returncode, other.returncode) == (1, 9)
    assert re.search(r"^error: another process of this training is gone \([A-Z].* peer", first.stderr, re.MULTILINE)
    assert max(map(len, first.stderr.splitlines())) < 300
    assert "Traceback" not in first.stderr
    assert not (tmp_path / "1" / "kept").exists()
    assert (tmp_path / "0" / "kept" / "0000000008" / "plan.json").is_file(), "a removal came before"
    again = pair(tmp_path, weights, "kept", "-1", checkpoint_s=0.0)
    assert [done.returncode for done in again] == [0, 0], again[1].stderr[-2000:]
    assert all("going on from step 8" in done.stderr for done in again)
    ended = (tmp_path / "0" / "weights.safetensors").read_bytes()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert [done.returncode for done in pair(undisturbed, weights, "", "-1")] == [0, 0]
    assert (undisturbed / "0" / "weights.safetensors").read_bytes() == ended


@pytest.mark.slow
def test_a_run_on_two_processes_leaves_what_one_leaves(tmp_path: Path) -> None:
    config_file = tmp_path / "small.yaml"
    config_file.write_text(
        "model: {args: {width: 4}}\nthreads: 1\ndense: {epochs: 2, batch_size: 100}\n"
        "sparse: {epochs: 3, batch_size: 100, lambda_peak: 0.4}\nengine: {flavour: none}\n"
    )
    out = tmp_path / "run"
    done = torchrun(tmp_path, "-m", "demport", "run", str(config_file), "--out", str(out), "--until", "surgery")
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in out.iterdir() if p.is_dir() and p.name[0] != ".") == [
        "10-dense", "20-sparse", "30-surgery"
    ]  # fmt: skip
    assert done.stdout.count('"status"') == 1, "one process tells"


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert expected_ranks() == Ranks(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert expected_ranks().part == (1, 4)
    assert not expected_ranks().first
    for rank, world in (("4", "4"), ("x", "2"), ("0", "0")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(UserError, match="torchrun"):
            expected_ranks()


def test_shares_that_differ_are_refused_and_one_process_joins_nothing() -> None:
    with pytest.raises(UserError, match="batches of 99 images on 2 processes"):
        demand_equal_shares(99, 1000, Ranks(0, 2))
    demand_equal_shares(99, 1000, Ranks())
    network, x = nn.Linear(2, 2), torch.ones(3)
    assert Ranks().joined(network, torch.device("cpu"), (torch.zeros(2, 2),)) is network
    assert Ranks().sum(x) is x
    assert Ranks().agree("mine") == "mine"
