"""The report's part on graphs: who made them, what was refused, what they lost and what stayed in fp32."""

from __future__ import annotations

from typing import Any

from pipeline.report.graph_schema import GraphFile, graphs

EXPORTED = {"opset": 20, "refused": {"18": "no Gelu"}}
SIMPLIFIED = {
    "used": "onnxslim",
    "nodes_before": 30,
    "nodes_after": 21,
    "refused": {"onnxsim": "its outputs differ by 1 at batch 1, over 1e-05"},
}
KEPT = {"layer": "node_conv_3", "weight": "layer1.0.conv1", "reason": "sensitive", "error": 0.25}
LOWER: dict[str, Any] = {
    "opset": 20,
    "drop_pp": 0.5,
    "images": 400,
    "holds": True,
    "kept": [KEPT],
    "measured_by": "ONNX Runtime",
    "nodes_low": 12,
    "nodes_fp32": 9,
}


def rows(**lower: dict[str, Any]) -> list[GraphFile]:
    first, second = dict.fromkeys(("dense", "compact"), EXPORTED), dict.fromkeys(("dense", "compact"), SIMPLIFIED)
    told = graphs(first, second, {"dense": {}, "compact": lower, "best": None})
    return [GraphFile.model_validate(row) for row in told]


def test_a_row_for_each_file() -> None:
    told = rows(int8=LOWER)
    assert [(row.model, row.precision) for row in told] == [("dense", "fp32"), ("compact", "fp32"), ("compact", "int8")]
    full, low = told[1:]
    assert (full.made_by, full.opset, full.nodes_before, full.nodes) == ("onnxslim", 20, 30, 21)
    assert full.refused == {"operator set 18": "no Gelu", **SIMPLIFIED["refused"]}  # type: ignore[dict-item]
    assert (full.drop_pp, full.holds, full.kept) == (None, None, [])
    assert (low.drop_pp, low.images, low.holds, low.nodes) == (0.5, 400, True, 21)
    assert [(kept.weight, kept.error) for kept in low.kept] == [("layer1.0.conv1", 0.25)]


def test_stages_that_did_not_run_leave_no_rows() -> None:
    assert graphs(None, None, None) == []
    only = graphs({"dense": EXPORTED, "compact": EXPORTED}, None, None)
    assert only == []
    assert len(rows()) == 2
