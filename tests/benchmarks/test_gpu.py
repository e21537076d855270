"""What of the GPU benchmark a CPU can run: its cases, its refusals, its reading of test reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gpu

SIDE = 8
CASE = {"runner": "torch eager", "model": "tiny", "precision": "fp32", "batch": 4}


def tiny(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 5)).eval()


@pytest.fixture(autouse=True)
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny(64), tiny(4)
    monkeypatch.setattr(gpu, "networks", lambda model, side: pair)


def test_every_case_of_the_issue() -> None:
    listed = gpu.cases(gpu.RUNNERS, gpu.MODELS, gpu.PRECISIONS, gpu.BATCHES)
    assert len(listed) == len(gpu.RUNNERS) * 2 * 3 * 4
    assert {case["batch"] for case in listed} == {1, 8, 64, 256}
    assert {"torch compiled", "torch cuda graph", "onnxruntime", "tensorrt_rtx SM80", "tensorrt_rtx CURRENT"} <= {
        case["runner"] for case in listed
    }
    assert len({json.dumps(case) for case in listed}) == len(listed)


@pytest.mark.parametrize("runner", ["torch eager", "onnxruntime"])
def test_dense_and_compact_are_measured_in_turn(runner: str, tmp_path: Path) -> None:
    rows = gpu.measured({**CASE, "runner": runner}, SIDE, "cpu", 0.5, tmp_path)
    assert [row["network"] for row in rows] == ["dense", "compact"]
    assert all(row["p50_ms"] > 0 and row["largest_error"] < 1e-5 and row["launches"] > 0 for row in rows)
    assert "speedup" not in rows[0]
    assert rows[1]["speedup_low"] <= rows[1]["speedup"] <= rows[1]["speedup_high"]
    assert rows[1]["images_per_s"] == 4000 / rows[1]["p50_ms"]


def test_what_cannot_run_here_has_its_reason(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for runner, words in (("torch cuda graph", "without a CUDA device"), ("tensorrt_rtx CURRENT", "none was found")):
        (row,) = gpu.measured({**CASE, "runner": runner}, SIDE, "cpu", 0.5, tmp_path)
        assert words in row["reason"] or "tensorrt_rtx cannot be imported" in row["reason"]
        assert set(row) == {"reason"}


def test_other_values_are_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = gpu.opened

    def wrong(case: Any, index: int, *rest: Any) -> Any:
        return opened(case, 1, *rest)  # compact in the place of dense

    monkeypatch.setattr(gpu, "opened", wrong)
    (row,) = gpu.measured(CASE, SIDE, "cpu", 0.5, tmp_path)
    assert row["reason"].startswith("torch eager computes other values in fp32: off by")
    assert "p50_ms" not in row


def test_a_test_report_is_counted() -> None:
    junit = """<testsuites><testsuite>
      <testcase classname="tests.a" name="one"/>
      <testcase classname="tests.a" name="two"><skipped message="tensorrt is not installed"/></testcase>
      <testcase classname="tests.b" name="three"><failure message="assert 1 == 2">long</failure></testcase>
      <testcase classname="tests.b" name="four"><error message="boom"/></testcase>
    </testsuite></testsuites>"""
    told = gpu.counts(junit)
    assert (told["passed"], told["skipped"], told["failed"]) == (1, 1, 2)
    assert told["reasons"]["tests.a.two"] == "tensorrt is not installed"
    assert told["reasons"]["tests.b.three"] == "assert 1 == 2"


def test_the_file_is_named_after_the_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.results_file("NVIDIA H100 80GB HBM3").name == "gpu.nvidia_h100_80gb_hbm3.json"
    monkeypatch.setattr(gpu, "gpus", lambda: ())
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no NVIDIA GPU that torch can use; ")


def test_a_run_writes_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "gpu.cpu.json"
    words = [
        "--device",
        "cpu",
        "--runners",
        "torch eager",
        "--models",
        "tiny",
        "--precisions",
        "fp32",
        "--batches",
        "1",
    ]
    words += ["--side", str(SIDE), "--no-tests", "--time-limit-s", "0.3", "--out", str(out)]
    assert gpu.main(words) == 0
    first = json.loads(out.read_text())
    assert (len(first["points"]), first["command"]) == (2, "python -m benchmarks.gpu")
    assert gpu.main(words) == 0
    assert json.loads(out.read_text()) == first
    assert gpu.main([*words, "--batches", "1", "2", "--limit-s", "0"]) == 3
