"""The benchmarks of the gates run, and their files have what a table needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmarks import gate_power, gate_reruns


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
        assert point["faster"] + point["not_distinguishable"] + point["slower"] == point["comparisons"]
        assert 0 < point["lowest_ratio"] <= point["median_ratio"] <= point["highest_ratio"]
    before = rows.read_text()
    gate_power.main([*options, "--out", str(out)])
    assert rows.read_text() == before, "started again it has nothing left to compare"


def test_busy_neighbours_go_apart() -> None:
    case, busy = "batch 1, 1 thread", "batch 32, 1 thread, 2 busy neighbours"
    wanted = [(case, 0), (busy, 0)] * gate_power.AT_ONCE
    told = [{name for name, _ in chunk} for chunk in gate_power.chunks(wanted)]
    assert told == [{case}, {busy}]


def row(slowed_pct: float, ratio: float, others_busy_pct: float = 0.0) -> dict[str, Any]:
    """A run whose compact network takes 1 ms, and whose intervals are 1 % wide to each side."""
    state = {"before": {"governor": None}, "others_busy_pct": others_busy_pct, "stolen_pct": 0.0, "gpus": []}
    entry = {
        "dense": {}, "compact": {"p50_ms": 2 / ratio, "best_ms": 2 / ratio}, "protocol": {"conditions": state},
        "speedup": {"ratio": ratio, "ci95": [0.99 * ratio, 1.01 * ratio]},
    }  # fmt: skip
    model = {"params": 1, "macs": 1, "bytes": 1, "accuracy": {}}
    return {
        "slowed_pct": slowed_pct, "name": "reruns", "environment": {"fingerprint": "aaaa"},
        "models": {"compact": model}, "latency": {"onnxruntime": {"fp32": {"b32": entry}}},
        "verdict": {"status": "pass", "gates": []},
    }  # fmt: skip


def test_every_share_has_half_as_many_runs_in_turn_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_reruns, "run", lambda slowed, *_: {"slowed_pct": slowed})
    monkeypatch.setattr(gate_reruns, "sittings", lambda *_: [{"sitting": 1}])
    rows: list[dict[str, Any]] = []
    for new in gate_reruns.missing(rows, 4, [10.0, 25.0], {}, {}):
        rows += new
        if len(rows) == 4:
            break
    assert [row.get("slowed_pct") for row in rows] == [None, 0.0, 0.0, 10.0]
    rest = [row["slowed_pct"] for new in gate_reruns.missing(rows, 4, [10.0, 25.0], {}, {}) for row in new]
    assert rest == [25.0, 0.0, 0.0, 10.0, 25.0]


def test_compact_of_the_reruns_has_aligned_widths() -> None:
    compact = gate_reruns.networks(align=8)["compact"]
    widths = {m.out_channels for m in compact.modules() if isinstance(m, nn.Conv2d)}
    assert widths
    assert all(width % 8 == 0 for width in widths)


def test_runs_of_the_same_networks_are_judged_by_each_other() -> None:
    """2.0, 2.02 and 1.6 times as fast: the third fails by both others, who pass by it; and 20 % slower fails by all
    but the one that was as slow."""
    rows = [row(0.0, 2.0), row(0.0, 2.02), row(0.0, 1.6), row(25.0, 1.6)]
    told = {(p["slowed_pct"], p["figures"]): p for p in gate_reruns.points(rows)}
    plain, slowed = told[0.0, "ratio"], told[25.0, "whole gate"]
    assert (plain["gates"], plain["pass"], plain["fail"], plain["inconclusive"]) == (6, 4, 2, 0)
    assert (slowed["gates"], slowed["fail"], slowed["pass"]) == (3, 2, 1)
    assert [text.partition(":")[0] for text in gate_reruns.missed(list(told.values()))] == [
        "nothing changed, ratio", "nothing changed, time", "compact slowed by 25 %, whole gate",
    ]  # fmt: skip
    quiet = gate_reruns.points([row(0.0, 2.0), row(0.0, 2.02), row(25.0, 1.6)])
    assert gate_reruns.missed(quiet) == []
    disturbed = gate_reruns.points([row(0.0, 2.0), row(0.0, 1.0, others_busy_pct=40.0)])
    assert [(p["inconclusive"], p.get("disturbed", 2)) for p in disturbed] == [(2, 2)] * 3
