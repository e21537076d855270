"""The real line on a very small network: kills, interruptions, two runs at once, full disks, damage, own modules."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.workspace import STAGES
from runtime.errors import EXIT_INTERRUPTED
from tests.conftest import Start

# A penalty strong enough for channels to die within two epochs.
CONFIG = """
name: tiny
threads: 1
model: {args: {width: 4}}
dense: {epochs: 1, batch_size: 100}
demp: {epochs: 2, batch_size: 100, lambda_peak: 1.0}
surgery: {align: 1}
engine: {flavour: none}
check: {batch_sizes: [1, 8], gate_batch: 8, threads: 1, min_blocks: 5, time_limit_s: 1}
"""


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("line") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def cut_run(config: Path) -> Path:
    """A run that was made in one go, as far as the surgery."""
    folder = config.parent / "whole"
    assert cli.command_line(["run", str(config), "--out", str(folder), "--until", "surgery"]) == 0
    return folder


def compact_weights(run: Path) -> bytes:
    return (run / "30-surgery" / "weights.safetensors").read_bytes()


def wait_for(found: Callable[[], bool], child: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert child.poll() is None, f"ended early: {child.communicate()}"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def half_way(run: Path) -> Callable[[], bool]:
    """The second training has finished an epoch, and has one to go."""
    history = run / ".20-demp.tmp" / "history.jsonl"
    return lambda: history.is_file() and history.stat().st_size > 0


def test_kill_9_in_a_training_ends_in_the_same_compact_weights(
    config: Path, cut_run: Path, tmp_path: Path, start_demport: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", config, "--out", tmp_path / "run", "--until", "surgery"]
    child = start_demport(*arguments)
    wait_for(half_way(tmp_path / "run"), child)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert sorted(p.name for p in (tmp_path / "run").glob("[0-9]*")) == ["10-dense"]
    assert cli.command_line([str(argument) for argument in arguments]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out.splitlines()[-1])
    assert told["skipped"] == ["10-dense"] and told["done"] == ["20-demp", "30-surgery"]
    assert "20-demp: removed the half-written folder of an interrupted run" in shown.err
    assert compact_weights(tmp_path / "run") == compact_weights(cut_run)
    assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_exits_130_and_leaves_nothing_half_written(
    number: signal.Signals, config: Path, tmp_path: Path, start_demport: Start
) -> None:
    child = start_demport("run", config, "--out", tmp_path / "run", "--until", "demp")
    wait_for(half_way(tmp_path / "run"), child)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == EXIT_INTERRUPTED and out == ""
    assert err.rstrip().endswith("interrupted") and "Traceback" not in err
    assert [p.name for p in (tmp_path / "run").glob("*-*")] == ["10-dense"]
    assert not (tmp_path / "run" / ".20-demp.tmp").exists()


def test_a_second_run_on_the_folder_exits_2_at_once(
    config: Path, tmp_path: Path, start_demport: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    child = start_demport("run", config, "--out", tmp_path / "run", "--until", "demp")
    wait_for((tmp_path / "run" / ".10-dense.tmp").exists, child)
    start = time.monotonic()
    assert cli.command_line(["run", str(config), "--out", str(tmp_path / "run")]) == 2
    assert time.monotonic() - start < 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path}/run: in use by process {child.pid}; ") and told.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root and mount(8)")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "demport-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_exits_2_with_the_path_and_the_space(
    config: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    arguments = ["run", str(config), "--out", str(run), "--until"]
    assert cli.command_line([*arguments, "dense"]) == 0
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 2**19))
    assert cli.command_line([*arguments, "demp"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        f"error: {run}: no space left on the disk (0.5 MiB free); stage 20-demp needs at least 1.1 MiB"
    )
    assert [p.name for p in run.glob("*-*")] == ["10-dense"]
    (small_disk / "ballast").unlink()
    assert cli.command_line([*arguments, "demp"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == ["10-dense"]


OWN = """
import numpy as np
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, num_classes))
"""


def test_a_model_beside_the_config_is_found_from_anywhere(
    tmp_path: Path, start_demport: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine" / "own_network.py").write_text(OWN)
    path = tmp_path / "mine" / "own.yaml"
    path.write_text(CONFIG.replace("model: {args: {width: 4}}", "model: {name: 'own_network:build'}"))
    child = start_demport("run", path, "--until", "dense", cwd=tmp_path / "elsewhere")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert json.loads(out)["run"] == "runs/own"
    stage = tmp_path / "elsewhere" / "runs" / "own" / "10-dense"
    first = json.loads((stage / "stage.json").read_text())
    setting, *words = shlex.split(first["command"])
    assert words[:3] == ["demport", "run", "runs/own/config.yaml"]
    monkeypatch.setenv(*setting.split("=", 1))
    again = start_demport(*words[1:], cwd=tmp_path / "elsewhere")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert json.loads(out)["done"] == ["10-dense"] and "runs again, as asked" in err
    second = json.loads((stage / "stage.json").read_text())
    assert second["files"]["weights.safetensors"] == first["files"]["weights.safetensors"]


def test_wrong_configs_leave_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dense: {epochs: 0}\n")
    assert cli.command_line(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    path.write_text("model: {args: {width: 0}}\n")
    assert cli.command_line(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr()
    assert "`dense.epochs` is 0" in shown.err and "width 0" in shown.err and shown.out == ""
    assert not [p for p in tmp_path.glob("run/*") if p.name in STAGES]
