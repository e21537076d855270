"""`demport baselines`: simpler networks on a run's own data, and what it cannot be asked of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.commands.baselines import budget
from pipeline.config.file import config_from_overrides
from tests.pipeline.report.run_folder import write_run
from tests.pipeline.tiny import CONFIG


def test_the_budget_is_what_compact_had() -> None:
    texts = ["dense.epochs=7", "sparse.epochs=5"]
    assert budget(config_from_overrides(texts)) == 5
    assert budget(config_from_overrides([*texts, "sparse.start=dense"])) == 12


def test_what_is_no_run_that_trained_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command_line(["baselines", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    write_run(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("given: {dense: a.onnx, compact: b.onnx}\n", encoding="utf-8")
    assert cli.command_line(["baselines", str(tmp_path / "run")]) == 2
    assert "is of two networks made elsewhere; a run that trains" in capsys.readouterr().err


@pytest.mark.slow
def test_every_baseline_is_measured_beside_compact_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    run = tmp_path / "run"
    steered = ["--set", "sparse.target.macs=0.5", "--set", "model.args.width=8"]
    assert cli.command_line(["run", str(tmp_path / "c.yaml"), "--out", str(run), *steered]) == 0
    capsys.readouterr()
    assert cli.command_line(["baselines", str(run), "--epochs", "1"]) == 0
    shown = capsys.readouterr()
    assert "baselines: about " in shown.err.splitlines()[0] and "three trainings of 1 epochs" in shown.err
    last = json.loads(shown.out.splitlines()[-1])
    rows = {row["name"]: row for row in last["rows"]}
    assert list(rows)[:2] == ["dense", "compact"]
    assert {"narrow", "random channels", "int8"} <= rows.keys() and ("lower resolution" in rows) != (
        "lower-resolution" in rows
    )
    assert rows["int8"]["epochs"] == 0 and rows["narrow"]["epochs"] == 1
    page = (run / "report.md").read_text("utf-8")
    assert "Would something simpler have done" in page and last["sentence"] in page.replace("\\", "")
    assert cli.command_line(["baselines", str(run), "--epochs", "1"]) == 0
    assert capsys.readouterr().err.count("up to date") == 4
