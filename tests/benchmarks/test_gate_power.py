"""The benchmark runs, and its file has what a table needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gate_power


@pytest.mark.slow
def test_a_small_run_writes_its_points(tmp_path: Path) -> None:
    out = tmp_path / "gate_power.json"
    options = ["--comparisons", "2", "--batches", "1", "--time-limit-s", "1", "--threads", "1", "--out", str(out)]
    gate_power.main(options)
    document = json.loads(out.read_text())
    assert (document["schema"], document["n"]) == (1, 2)
    assert document["environment"]["fingerprint"]
    points = document["points"]
    assert [(point["slowed_pct"], point["comparisons"]) for point in points] == [(0, 2), (5, 1), (10, 1)]
    for point in points:
        assert point["faster"] + point["not_distinguishable"] + point["slower"] == point["comparisons"]
        assert 0 < point["lowest_ratio"] <= point["median_ratio"] <= point["highest_ratio"]
