"""`demport bench` on small files: sweep, sessions at once, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.report.speed_schema import Load, Speedup
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
    assert first["speedup"] is None and Speedup.model_validate(second["speedup"])
    assert second["end_to_end"]["best_ms"] > second["best_ms"] and "samples_ms" not in second
    assert first["p50_ms"] <= first["p95_ms"] <= first["p99_ms"]
    (load,) = document["concurrency"]
    assert load["streams"] == 2 and all(Load.model_validate(model).images_per_s > 0 for model in load["models"])
    assert text.count("against the first; end to end") == 2 and "2 at once, batch 1" in text


def test_one_batch_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, _ = bench(capsys, str(write_onnx(tmp_path / "a.onnx")), "--batch", "2")
    assert "sweep" not in document and document["concurrency"] == []
    assert document["models"][0]["images_per_s"] == pytest.approx(2000 / document["models"][0]["mean_ms"])
    assert document["protocol"]["precision"] == 0.01


def test_report_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    from pipeline.measuring_commands import report

    for arguments, found in (
        ({"runs": [tmp_path], "compare": True, "card": True}, "--compare with --card"),
        ({"runs": [tmp_path, tmp_path]}, "2 runs without --compare"),
        ({"runs": [tmp_path], "out": tmp_path / "x.html"}, "--out without --compare"),
    ):
        with pytest.raises(UserError) as caught:
            report(**arguments)
        assert caught.value.found == found
        assert caught.value.remedy in ("leave one out", "add --compare")
