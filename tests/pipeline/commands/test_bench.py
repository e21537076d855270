"""`demport bench` on small files: sweep, sessions at once, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from runtime.errors import UserError
from tests.runtime.nets import write_onnx


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    assert cli.command_line(["bench", *arguments, "--threads", "1", "--time-limit", "1", "--min-blocks", "5"]) == 0
    shown = capsys.readouterr()
    document: dict[str, Any] = json.loads(shown.out.splitlines()[-1])
    return document, shown.err


def test_a_sweep_and_sessions_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_onnx(tmp_path / name)) for name in ("a.onnx", "b.onnx")]
    document, text = bench(capsys, *files, "--batch", "1", "--batch", "4", "--streams", "2", "--precision", "0.2")
    assert [one["batch"] for one in document["sweep"]] == [1, 4]
    assert document["batch"] == 1 and document["models"] == document["sweep"][0]["models"]
    first, second = document["models"]
    assert first["speedup"] is None and {*second["speedup"]} == {"ratio", "ci95", "verdict", "detectable"}
    assert second["end_to_end"]["best_ms"] > second["best_ms"] and "samples_ms" not in second
    assert first["p50_ms"] <= first["p95_ms"] <= first["p99_ms"]
    (load,) = document["concurrency"]
    assert load["streams"] == 2 and all(
        model["images_per_s"] > 0 and model["p99_ms"] >= model["p50_ms"] for model in load["models"]
    )
    assert text.count("against the first; end to end") == 2 and "2 at once, batch 1" in text


def test_one_batch_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, _ = bench(capsys, str(write_onnx(tmp_path / "a.onnx")), "--batch", "2")
    assert "sweep" not in document and document["concurrency"] == []
    assert document["models"][0]["images_per_s"] == pytest.approx(2000 / document["models"][0]["mean_ms"])
    assert document["protocol"]["precision"] == 0.01


def test_report_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    from pipeline.cli.measure import report

    for arguments, found in (
        ({"runs": [tmp_path], "compare": True, "card": True}, "--compare with --card"),
        ({"runs": [tmp_path, tmp_path]}, "2 runs without --compare"),
        ({"runs": [tmp_path], "out": tmp_path / "x.html"}, "--out without --compare"),
    ):
        with pytest.raises(UserError) as caught:
            report(**arguments)
        assert caught.value.found == found
        assert caught.value.remedy in ("leave one out", "add --compare")


def test_a_file_of_another_batch_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free, fixed = write_onnx(tmp_path / "free.onnx"), write_onnx(tmp_path / "fixed.onnx", batch=2)
    assert cli.command_line(["bench", str(free), str(fixed), "--batch", "4"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: fixed.onnx takes a batch of 2 only; a batch of 4; add --batch 2\n" and shown.out == ""
    document, _ = bench(capsys, str(free), str(fixed), "--batch", "2", "--precision", "0.5")
    assert document["batch"] == 2 and document["models"][1]["speedup"]["verdict"]


def test_what_cannot_be_timed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("not a graph\n")
    (tmp_path / "notes.txt").write_text("not a graph\n")
    good = write_onnx(tmp_path / "good.onnx")
    for name, words in (("text.onnx", "cannot load"), ("notes.txt", "ends in '.txt'"), ("gone.onnx", "is no file")):
        for files in ((tmp_path / name,), (good, tmp_path / name), (tmp_path / name, good)):
            assert cli.command_line(["bench", *map(str, files)]) == 2
            shown = capsys.readouterr()
            assert words in shown.err and shown.err.startswith("error: ") and shown.err.count("\n") == 1
            assert shown.out == ""
