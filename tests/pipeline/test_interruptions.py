"""The real line on a very small network, killed, interrupted, run twice at once, and on a full disk."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cli
from runtime.errors import EXIT_INTERRUPTED
from tests.conftest import Start
from tests.pipeline.tiny import compact_weights


def wait_for(found: Callable[[], bool], child: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert child.poll() is None, f"ended early: {child.communicate()}"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def half_way(run: Path) -> Callable[[], bool]:
    """The second training has finished an epoch, and has one to go."""
    history = run / ".20-sparse.tmp" / "history.jsonl"
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
    assert told["skipped"] == ["10-dense"] and told["done"] == ["20-sparse", "30-surgery"]
    assert "20-sparse: removed the half-written folder of an interrupted run" in shown.err
    assert compact_weights(tmp_path / "run") == compact_weights(cut_run)
    assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interruption_exits_130_and_leaves_nothing_half_written(
    number: signal.Signals, config: Path, tmp_path: Path, start_demport: Start
) -> None:
    child = start_demport("run", config, "--out", tmp_path / "run", "--until", "sparse")
    wait_for(half_way(tmp_path / "run"), child)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == EXIT_INTERRUPTED and out == ""
    assert err.rstrip().endswith("interrupted") and "Traceback" not in err
    assert [p.name for p in (tmp_path / "run").glob("*-*")] == ["10-dense"]
    assert not (tmp_path / "run" / ".20-sparse.tmp").exists()


def test_a_second_run_on_the_folder_exits_2_at_once(
    config: Path, tmp_path: Path, start_demport: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    child = start_demport("run", config, "--out", tmp_path / "run", "--until", "sparse")
    lock = tmp_path / "run" / ".lock"
    wait_for(lambda: lock.is_file() and lock.read_text().strip() == str(child.pid), child)
    start = time.monotonic()
    assert cli.command_line(["run", str(config), "--out", str(tmp_path / "run")]) == 2
    assert time.monotonic() - start < 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path}/run: in use by process {child.pid}; ") and told.count("\n") == 1


def test_a_full_disk_exits_2_with_the_path_and_the_space(
    config: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    arguments = ["run", str(config), "--out", str(run), "--until"]
    assert cli.command_line([*arguments, "dense"]) == 0
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 2**19))
    assert cli.command_line([*arguments, "sparse"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        f"error: {run}: no space left on the disk (0.5 MiB free); stage 20-sparse needs at least 1.2 MiB"
    )
    assert [p.name for p in run.glob("*-*")] == ["10-dense"]
    (small_disk / "ballast").unlink()
    assert cli.command_line([*arguments, "sparse"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == ["10-dense"]
