"""The command line as a user meets it: help, usage errors, exit codes, and how little it imports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from pipeline import cli
from pipeline.config.file import config_schema
from runtime.errors import UserError
from tests.conftest import REPOSITORY

COMMANDS = ("run", "prune", "shrink", "bench", "check", "gate", "preflight", "publish", "ask", "report", "doctor")
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pydantic", "yaml", "plotly", "sklearn")


def call(*arguments: str) -> int:
    return cli.command_line(arguments)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name}" not in text] == []


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli import command_line; command_line(['--help']); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - start)
    assert done.stderr.strip() == "[]"
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Usage: demport {command}") and shown.err == ""


def test_help_of_run_ends_with_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--help") == 0
    text = capsys.readouterr().out
    assert "  lambda_peak: Peak weight of the L1 penalty" in text
    assert text.rstrip().endswith('[text; default "pvc://models/demport"]')


def test_the_schema_is_printed_without_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--print-schema") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == config_schema()
    assert shown.err == ""


USAGE = {
    "nothing": ([], "Missing command", "`demport --help`"),
    "no config": (["run"], "Missing argument 'CONFIG'", "`demport run --help`"),
    "no such command": (["rnu"], "No such command 'rnu'", "`demport --help`"),
    "no such option": (["run", "c.yaml", "--foo"], "No such option: --foo", "`demport run --help`"),
    "no such device": (["run", "c.yaml", "--device", "tpu"], "'--device'", "'auto', 'cpu', 'cuda'"),
    "too many": (["doctor", "b"], "unexpected extra argument", "`demport doctor --help`"),
    "no file": (["run", "nope.yaml"], "nope.yaml: no such file", "check the path"),
    "no stage": (["run", "c.yaml", "--until", "70-chek"], "--until 70-chek", "10-dense, 20-sparse"),
    "no run": (["check", "nope"], "nope: no run folder", "make one with `demport run`"),
    "no run to report": (["report", "nope"], "nope: no run folder", "make one with `demport run`"),
    "override": (["run", "c.yaml", "--set", "dense.lrr=1"], "unknown key `dense.lrr`", "`dense.lr`?"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_is_one_line_and_exit_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, found, remedy = USAGE[case]
    (tmp_path / "c.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and shown.err.count("; ") >= 2
    assert found in shown.err and remedy in shown.err, shown.err
    assert shown.out == "" and [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_message_of_several_lines_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(asked: bool) -> None:
        raise UserError("two\nlines", "expected\tone", "mend it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.config.file.config_schema", lambda: fail(True))
        assert call("run", "--print-schema") == 2
    assert capsys.readouterr().err == "error: two lines; expected one; mend it\n"


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (typer.Abort(), 130, "interrupted\n"),
        (SystemExit(0), 2, "ended the program (0) before the command was done; modules that import"),
        (RuntimeError("a bug"), 70, "RuntimeError: a bug\nerror: a fault of demport's own"),
    ],
)
def test_interruptions_and_bugs_have_their_own_codes(
    raised: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("pipeline.config.file.config_schema", fail)
    assert call("run", "--print-schema") == code
    assert told in capsys.readouterr().err
