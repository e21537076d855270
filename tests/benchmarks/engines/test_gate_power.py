"""The benchmark of the gate's power runs, and its file has what a table needs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.engines import gate_power


def test_a_small_run_writes_its_points(tmp_path: Path) -> None:
    out, rows = tmp_path / "gate_power.json", tmp_path / "rows.jsonl"
    options = ["--comparisons", "2", "--cases", "batch 1, 1 thread", "--time-limit-s", "0.4", "--rows", str(rows)]
    gate_power.main([*options, "--out", str(out)])
    document = json.loads(out.read_text())
    assert (document["schema"], document["n"]) == (1, 2)
    assert document["environment"]["fingerprint"]
    points = document["points"]
    assert [(point["against"], point["comparisons"]) for point in points] == [
        ("itself", 2), ("a copy slowed by 5 %", 1), ("a copy slowed by 10 %", 1),
    ]  # fmt: skip
    for point in points:
        assert point["pass"] + point["fail"] + point["inconclusive"] == point["comparisons"]
        assert 0 < point["lowest_ratio"] <= point["median_ratio"] <= point["highest_ratio"]
    before = rows.read_text()
    gate_power.main([*options, "--out", str(out)])
    assert rows.read_text() == before, "started again it has nothing left to compare"


def test_busy_neighbours_go_apart() -> None:
    case, busy = "batch 1, 1 thread", "batch 32, 1 thread, 2 busy neighbours"
    missing = [(case, 0), (busy, 0)] * gate_power.AT_ONCE
    names = [{name for name, _ in chunk} for chunk in gate_power.chunks(missing)]
    assert names == [{case}, {busy}]
