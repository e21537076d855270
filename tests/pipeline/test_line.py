"""The real line on a very small network: what each command does with a finished run, damage, own modules."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.report import render as rendering
from pipeline.workspace.folder import STAGES
from tests.conftest import Start
from tests.pipeline.tiny import CONFIG, compact_weights


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
    assert cli.command_line(["gate", str(copied_run), "--baseline", str(copied_run / "accepted"), "--update"]) == 2
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


def test_commands_on_a_finished_run_change_their_own_section_alone(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied_run / "config.yaml").read_text()
    assert cli.command_line(["check", str(copied_run), "--set", "data.resize=8"]) == 2
    assert "--set data.resize=8, on a finished run; a key of the section check" in capsys.readouterr().err
    arguments = ["publish", str(copied_run), str(copied_run / "models"), "--set", "check.threads=1"]
    assert cli.command_line(arguments) == 2 and "a key of the section publish" in capsys.readouterr().err
    assert (copied_run / "config.yaml").read_text() == before


def test_a_run_that_cannot_be_written_is_published(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode, **_: Path(path) != copied_run or mode != os.W_OK)
    assert cli.command_line(["publish", str(copied_run), str(tmp_path / "models")]) == 0
    assert "cannot be written, so it keeps no record" in capsys.readouterr().err
    assert (tmp_path / "models" / "demport.json").is_file() and not (copied_run / "80-publish").exists()


def test_report_is_written_again(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied_run / "report.html").unlink()
    assert cli.command_line(["report", str(copied_run)]) == 0
    assert document(capsys) == {"status": "done", "report": str(copied_run / "report.html")}
    assert (copied_run / "report.html").is_file()


def test_gate_accepts_a_run_and_finds_a_regression(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, junit, summary = tmp_path / "accepted", tmp_path / "j.xml", tmp_path / "s.md"
    gate = ["gate", str(whole_run), "--baseline", str(baseline)]
    assert cli.command_line(gate) == 2
    assert cli.command_line([*gate, "--update"]) == 2 and not baseline.exists()  # nobody to ask
    assert "look at the figures, then add --yes" in capsys.readouterr().err
    assert cli.command_line([*gate, "--update", "--yes"]) == 0
    assert document(capsys)["status"] == "updated"
    assert cli.command_line(gate) in (0, 3)
    accepted = json.loads((baseline / "baseline.json").read_text())
    accepted["release"]["figures"]["params"] /= 2
    (baseline / "baseline.json").write_text(json.dumps(accepted))
    assert cli.command_line([*gate, "--junit", str(junit), "--summary", str(summary)]) == 1
    failed = [one["name"] for one in document(capsys)["gates"] if one["status"] == "fail"]
    assert failed == ["baseline.params"]
    assert "<failure" in junit.read_text() and "baseline.params" in summary.read_text()


def test_gate_refuses_a_report_that_is_none(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = ["gate", str(copied_run), "--baseline", str(tmp_path / "accepted")]
    assert cli.command_line([*gate, "--update", "--yes"]) == 0
    (copied_run / "report.json").write_text("[]")
    assert cli.command_line(gate) == 2
    assert "report.json: " in capsys.readouterr().err.splitlines()[-1]


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
    assert "`dense.epochs`: 0, and there are no weights" in shown.err and "width 0" in shown.err and shown.out == ""
    assert not [p for p in tmp_path.glob("run/*") if p.name in STAGES]
