"""What a report says of an engine's precision."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.report.engine_schema import EngineProof, proven, with_proofs

PROOF: dict[str, Any] = {
    "source": "network", "precision": "fp16", "share": 1.0, "products": {"fp16": 54}, "others": [], "unknown": 0,
    "reformats": 0, "casts": 2, "quantizes": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "54 fp16; 2 casts; from the network"),
        ({"casts": 0, "quantizes": 31}, "54 fp16; 31 quantisations; from the network"),
        (
            {"share": 0.875, "products": {"fp32": 3, "int8": 50}, "source": "engine", "reformats": 4, "unknown": 1},
            "3 fp32, 50 int8 (87.5\N{NO-BREAK SPACE}% of the work); 1 not told; 2 casts; 4 reformats; from the engine",
        ),
    ],
)
def test_one_line(changes: dict[str, Any], text: str) -> None:
    assert proven(EngineProof.model_validate({**PROOF, **changes})) == text
    assert proven(None) == ""


def test_proofs_by_engine() -> None:
    rows = [{"model": m, "precision": "fp16", "target": t} for m in ("dense", "compact") for t in ("SM86", "SM89")]
    built: list[dict[str, Any]] = [{**row, "engine": {"proof": {**PROOF, "casts": n}}} for n, row in enumerate(rows)]
    built[2]["engine"] = None
    told = with_proofs(rows, {"engines": built[::-1]})
    assert [row["proof"] and row["proof"]["casts"] for row in told] == [0, 1, None, 3]
    assert [row["proof"] for row in with_proofs(rows, None)] == [None] * 4
    assert "proof" not in rows[0]
