"""What every benchmark shares: the recorded command, the document, and how one goes on."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import results

SCRIPTS = sorted(
    path.stem for path in Path(results.__file__).parent.glob("*.py") if "__main__" in path.read_text("utf-8")
)


def test_the_command_names_what_is_not_as_by_default(tmp_path: Path) -> None:
    parser = results.parser("few", "A title.\n\nMore.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit-s", type=float, default=1.0)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args(
        ["--out", str(tmp_path / "few.cpu.json"), "--seeds", "1", "2", "--limit-s", "9", "--fast"]
    )
    start = "python -m benchmarks.few --out benchmarks/results/few.cpu.json --seeds 1 2"
    assert results.command(parser, options) == f"{start} --limit-s 9 --fast"
    assert results.command(parser, options, ("limit_s", "fast")) == start
    with pytest.raises(SystemExit):
        parser.parse_args([])


def test_a_document_has_the_machine_and_counts_its_points(tmp_path: Path) -> None:
    out = tmp_path / "few.cpu.json"
    assert results.points_in(out) == []
    results.write(out, "python -m benchmarks.few", [{"p50_ms": 1.5}], data="none")
    document = json.loads(out.read_text("utf-8"))
    assert (document["n"], document["data"], document["points"]) == (1, "none", [{"p50_ms": 1.5}])
    assert "torch" in document["environment"]["versions"]
    assert results.points_in(out) == [{"p50_ms": 1.5}]


def test_broken_promises_are_said_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert results.judge([]) == 0
    assert results.judge(["slow"]) == 1
    assert capsys.readouterr().err == "missed: slow\n"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("cutting", "plots")])
def test_every_script_says_what_it_measures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"python -m benchmarks.{name}" in text
