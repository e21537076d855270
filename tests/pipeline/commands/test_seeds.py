"""Several seeds of one config: a run each, their mean and spread, one verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli, line
from pipeline.config import Config
from pipeline.report.several.seeds import RULE, Spread, spread_of, verdict
from tests.pipeline.report.check_document import check
from tests.pipeline.report.run_folder import write_run
from tests.pipeline.tiny import CONFIG


def test_mean_and_spread_are_those_worked_out_by_hand() -> None:
    assert spread_of([1.0, 2.0, 6.0]) == Spread(3.0, 7**0.5, 1.0, 6.0)  # (4 + 1 + 9) / 2
    assert spread_of([0.5]) == Spread(0.5, None, 0.5, 0.5)


def test_one_seed_that_fails_fails_all() -> None:
    assert verdict(["pass", "pass"]) == "pass"
    assert verdict(["inconclusive", "fail", "pass"]) == "fail"
    assert verdict(["pass", "inconclusive"]) == "inconclusive"


def test_each_seed_is_a_run_and_the_summary_is_of_their_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[int] = []

    def run(config: Config, order: line.Order, progress: object) -> line.Outcome:
        seeds.append(config.seed)
        models = check()["models"]
        models["compact"]["accuracy"]["torch"] = 0.9 + 0.01 * config.seed
        write_run(order.out, models=models)
        return line.Outcome(order.out, {"status": "pass", "gates": []}, (), ())

    monkeypatch.setattr(line, "run", run)
    (tmp_path / "c.yaml").write_text("name: tiny\n", encoding="utf-8")
    arguments = ["run", "--seeds", "0", "1", "4", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    code = cli.command_line(arguments)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, seeds) == ({"pass": 0, "fail": 1, "inconclusive": 3}[last["status"]], [0, 1, 4])
    assert last["status"] == check()["verdict"]["status"]
    figures = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert figures["schema"] == 1 and figures["rule"] == RULE and list(figures["seeds"]) == ["0", "1", "4"]
    compact = figures["figures"]["compact_accuracy"]
    assert [compact[key] for key in ("mean", "low", "high")] == pytest.approx([0.9 + 0.05 / 3, 0.9, 0.94])
    assert figures["figures"]["macs_share"] == {"mean": 0.25, "sd": 0.0, "low": 0.25, "high": 0.25}
    assert figures["seeds"]["4"]["speedup"] == pytest.approx(1.6, abs=0.01)
    page = (tmp_path / "out" / "seeds.md").read_text("utf-8")
    assert RULE in page and "| seed 4 |" in page


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (["x"], "--seeds x; whole numbers from 0 to 2147483647"),
        (["1", "1"], "--seeds 1 1; each seed once"),
        ([str(2**31)], "whole numbers from 0 to 2147483647"),
        ([], "requires an argument"),
    ],
)
def test_what_are_no_seeds_is_one_line(
    seeds: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    words = ["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out"), "--seeds", *seeds]
    assert cli.command_line(words) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_folder_and_a_pair_take_no_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    write_run(tmp_path / "run", ("10-dense",))
    words = ["run", str(tmp_path / "c.yaml"), "--seeds", "0", "1", "--out"]
    assert cli.command_line([*words, str(tmp_path / "run")]) == 2
    assert "a run folder; a folder for several runs" in capsys.readouterr().err
    pair = ["--set", "given.dense=a.onnx", "--set", "given.compact=b.onnx"]
    assert cli.command_line([*words, str(tmp_path / "out"), *pair]) == 2
    assert "--seeds with `given`" in capsys.readouterr().err


@pytest.mark.slow
def test_two_seeds_of_a_real_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    words = ["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out"), "--seeds", "0", "1"]
    assert cli.command_line(words) == 0
    first = capsys.readouterr()
    assert cli.command_line(words) == 0
    again = capsys.readouterr()
    assert again.out == first.out and again.err.count("is up to date") == 2
    weights = [(tmp_path / "out" / f"seed-{seed}" / "30-surgery" / "weights.safetensors") for seed in (0, 1)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
