"""The real line on a very small network: kills, interruptions, two runs at once, full disks, damage, own modules."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, rendering
from pipeline.workspace import STAGES
from runtime.errors import EXIT_INTERRUPTED
from tests.conftest import Start
from tests.pipeline.tiny import CONFIG


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


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
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
    assert cli.command_line([*arguments, "demp"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        f"error: {run}: no space left on the disk (0.5 MiB free); stage 20-demp needs at least 1.2 MiB"
    )
    assert [p.name for p in run.glob("*-*")] == ["10-dense"]
    (small_disk / "ballast").unlink()
    assert cli.command_line([*arguments, "demp"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == ["10-dense"]


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON document that ends stdout; NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the output")

    told = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)
    assert isinstance(told, dict)
    return told


def test_the_whole_line_leaves_every_stage_a_verdict_and_a_report(
    config: Path, whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    code = cli.command_line(["run", str(config), "--out", str(whole_run)])
    assert time.monotonic() - start < 5
    told = document(capsys)
    assert told["done"] == [] and told["skipped"] == list(STAGES[:-1])
    assert {"pass": 0, "fail": 1, "inconclusive": 3}[told["status"]] == code
    names = {gate["name"] for gate in told["verdict"]["gates"]}
    assert names >= {"max_accuracy_drop", "min_speedup", "max_abs_diff"}
    report = json.loads((whole_run / "report.json").read_text())
    assert report["verdict"]["status"] == told["status"] and report["name"] == "tiny"
    assert report["surgery"]["channels_after"] < report["surgery"]["channels_before"]
    assert (whole_run / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.usefixtures("quiet")
def test_check_measures_again_and_nothing_else(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = compact_weights(copied_run)
    code = cli.command_line(["check", str(copied_run), "--set", "check.gates.min_speedup=1000"])
    told = document(capsys)
    assert code == 1 and told["status"] == "fail" and told["done"] == ["70-check"]
    gate = next(gate for gate in told["verdict"]["gates"] if gate["name"] == "min_speedup")
    assert (gate["status"], gate["limit"]) == ("fail", 1000) and compact_weights(copied_run) == before
    assert cli.command_line(["gate", str(copied_run), "--baseline", str(copied_run / "b.json"), "--update"]) == 2
    assert "the run failed min_speedup" in capsys.readouterr().err


def test_check_refuses_what_it_cannot_measure(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command_line(["check", str(copied_run), "--set", "check.gate_batch=7"]) == 2
    assert "7 is not measured" in capsys.readouterr().err
    (copied_run / "30-surgery" / "plan.json").unlink()
    assert cli.command_line(["check", str(copied_run)]) == 2
    assert "30-surgery: plan.json is missing; expected a finished stage" in capsys.readouterr().err


def test_check_refuses_other_data_than_the_runs(
    copied_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.fingerprint", lambda section: "other")
    assert cli.command_line(["check", str(copied_run)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: data.source digits changed since") and "run `demport run` again" in told


def test_report_is_written_again(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied_run / "report.html").unlink()
    assert cli.command_line(["report", str(copied_run)]) == 0
    assert document(capsys) == {"status": "done", "report": str(copied_run / "report.html")}
    assert (copied_run / "report.html").is_file()


def test_gate_accepts_a_run_and_finds_a_regression(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, junit, summary = tmp_path / "b.json", tmp_path / "j.xml", tmp_path / "s.md"
    gate = ["gate", str(whole_run), "--baseline", str(baseline)]
    assert cli.command_line(gate) == 2
    assert cli.command_line([*gate, "--update"]) == 2 and not baseline.exists()  # nobody to ask
    assert "look at the figures, then add --yes" in capsys.readouterr().err
    assert cli.command_line([*gate, "--update", "--yes"]) == 0
    assert document(capsys)["status"] == "updated"
    assert cli.command_line(gate) in (0, 3)
    accepted = json.loads(baseline.read_text())
    (device,) = accepted["devices"].values()
    device["figures"]["params"] /= 2
    baseline.write_text(json.dumps(accepted))
    assert cli.command_line([*gate, "--junit", str(junit), "--summary", str(summary)]) == 1
    failed = [one["name"] for one in document(capsys)["gates"] if one["status"] == "fail"]
    assert failed == ["baseline.params"]
    assert "<failure" in junit.read_text() and "baseline.params" in summary.read_text()


def test_gate_refuses_a_report_that_is_not_of_the_stages(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied_run / ".rendered.json").write_text("{}")
    assert cli.command_line(["gate", str(copied_run), "--baseline", str(tmp_path / "b.json")]) == 2
    told = capsys.readouterr().err
    assert "report.json is not of the stages beside it" in told and f"run `demport report {copied_run}`" in told
    (tmp_path / "report.json").write_text("[]")
    assert cli.command_line(["gate", str(tmp_path), "--baseline", str(tmp_path / "b.json")]) == 2
    assert "report.json: not an object" in capsys.readouterr().err


def test_publish_writes_a_repository_and_records_it(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["publish", str(copied_run), str(tmp_path / "models")]
    assert cli.command_line(arguments) == 0
    told = document(capsys)
    assert [model["name"] for model in told["models"]][:2] == ["tiny", "tiny_fp16"]
    compact = tmp_path / "models" / "tiny" / "2" / "model.onnx"
    assert compact.read_bytes() == (copied_run / "50-simplify" / "compact.onnx").read_bytes()
    record = json.loads((copied_run / "80-publish" / "stage.json").read_text())
    assert record["result"]["directory"] == str(tmp_path / "models")
    report = json.loads((copied_run / "report.json").read_text())
    assert report["published"]["directory"] == str(tmp_path / "models") and report["published"]["current"] is True
    assert f"Triton repository in {tmp_path / 'models'}" in (copied_run / "report.html").read_text()
    assert rendering.is_current(copied_run)  # so that the gate takes it
    assert cli.command_line(arguments) == 2
    assert "--replace" in capsys.readouterr().err
    assert cli.command_line([*arguments, "--replace"]) == 0


def test_bench_compares_files_with_the_first(whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(whole_run / "50-simplify" / f"{name}.onnx") for name in ("dense", "compact")]
    options = ["--batch", "4", "--threads", "1", "--min-blocks", "5", "--time-limit", "1"]
    assert cli.command_line(["bench", *files, *options]) == 0
    told = document(capsys)
    assert [model["file"] for model in told["models"]] == files and told["batch"] == 4
    assert told["models"][0]["speedup"] is None
    assert set(told["models"][1]["speedup"]) == {"ratio", "ci95", "verdict", "detectable"}
    assert all(model["best_ms"] <= model["p50_ms"] <= model["p95_ms"] for model in told["models"])
    assert cli.command_line(["bench", files[0], "nope.onnx"]) == 2
    assert "nope.onnx is no file" in capsys.readouterr().err


def test_a_damaged_artifact_is_made_again(config: Path, copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied_run / "50-simplify" / "compact.onnx"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert cli.command_line(["run", str(config), "--out", str(copied_run), "--until", "simplify"]) == 0
    shown = capsys.readouterr()
    assert "50-simplify: runs again, compact.onnx was changed" in shown.err
    assert json.loads(shown.out.splitlines()[-1])["done"] == ["50-simplify"]
    assert path.read_bytes() == good


OWN = """
import numpy as np
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, num_classes))
"""


def test_a_model_beside_the_config_is_found_from_anywhere(
    tmp_path: Path, start_demport: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the command in stage.json repeats the stage in a process of its own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine" / "own_network.py").write_text(OWN)
    path = tmp_path / "mine" / "own.yaml"
    path.write_text(CONFIG.replace("model: {args: {width: 4}}", "model: {name: 'own_network:build'}"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.command_line(["run", str(path), "--until", "dense"]) == 0
    assert document(capsys)["run"] == "runs/own"
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
