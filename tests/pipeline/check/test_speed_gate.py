"""min_speedup in the check: it fails where the speedup is not there, and decides nothing on too few blocks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtime.measure import conditions
from tests.pipeline.stages.test_check import SECTION, run


@pytest.mark.usefixtures("quiet")
def test_a_speedup_that_is_not_there_fails(tmp_path: Path) -> None:
    result, document = run(tmp_path, gates=SECTION.gates.model_copy(update={"min_speedup": 50.0}))
    gate = document["verdict"]["gates"][2]
    assert gate["status"] == "fail"
    assert gate["limit"] == 50.0
    assert gate["value"] == result.speedup == document["latency"]["onnxruntime"]["fp32"]["b4"]["speedup"]["ratio"]


@pytest.mark.parametrize(("limit", "status"), [(0.01, "pass"), (50.0, "fail")])
def test_a_busy_machine_is_said_beside_the_figure(
    limit: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both networks had their share of what disturbed it."""
    monkeypatch.setattr(conditions, "_cpu_seconds", lambda: (1000 * time.perf_counter(), 0.0, 0.0))
    changes = {"min_speedup": limit}
    _, document = run(tmp_path, gates=SECTION.gates.model_copy(update=changes), batch_sizes=(4,))
    gates = {gate["name"]: gate for gate in document["verdict"]["gates"]}
    assert (gates["min_speedup"]["status"], gates["min_speedup"]["limit"]) == (status, limit)
    assert "the machine was disturbed (other processes took 100 % of the cores)" in gates["min_speedup"]["reason"]


@pytest.mark.usefixtures("quiet")
def test_too_few_blocks_decide_nothing(tmp_path: Path) -> None:
    limits = SECTION.gates.model_copy(update={"min_speedup": 50.0})
    _, document = run(tmp_path, gates=limits, min_blocks=100_000, batch_sizes=(4,))
    gate = document["verdict"]["gates"][2]
    assert gate["status"] == "inconclusive"
    assert gate["reason"].endswith("; too few blocks: raise check.time_limit_s")
