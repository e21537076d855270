"""The part `graphs` of report.json: how each ONNX file was made, what it lost, and what stayed in fp32; and `best`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from .parts import Part

Json = Mapping[str, Any]


class KeptLayer(Part):
    """A layer that stays in fp32; `error` is null where something else than its sensitivity is the reason."""

    layer: str
    weight: str
    reason: str
    error: float | None


class GraphFile(Part):
    """One graph. `drop_pp` against its own fp32 graph, on `images` of the test split; null for fp32 itself."""

    model: str
    precision: str
    made_by: str = Field(description="onnxsim, onnxslim or original for fp32; else how its values were proven.")
    opset: int | None
    nodes_before: int | None = Field(description="Before it was simplified; null for lower precisions.")
    nodes: int
    refused: dict[str, str] = Field(description="Simplifiers and operator sets that were tried before, and why not.")
    drop_pp: float | None
    images: int | None
    holds: bool | None
    kept: list[KeptLayer]


class BestCandidate(Part):
    precision: str
    p50_ms: float | None
    speedup: float | None
    reason: str | None


class Best(Part):
    """The fastest precision of the compact network on this machine among those that hold."""

    precision: str
    batch: int
    backend: str
    device: str
    candidates: list[BestCandidate]


def graphs(exported: Json | None, simplified: Json | None, lower: Json | None) -> list[dict[str, Any]]:
    """Rows of `graphs` from the results of the stages 40, 50 and 55, None where one did not run."""
    rows: list[dict[str, Any]] = []
    for model in ("dense", "compact"):
        if simplified:
            told, first = simplified[model], exported[model] if exported else {"opset": None, "refused": {}}
            sets = {f"operator set {number}": why for number, why in first["refused"].items()}
            rows.append(
                {
                    **{"model": model, "precision": "fp32", "made_by": told["used"], "opset": first["opset"]},
                    **{"nodes_before": told["nodes_before"], "nodes": told["nodes_after"]},
                    **{"refused": {**sets, **told["refused"]}, "kept": []},
                    **dict.fromkeys(("drop_pp", "images", "holds")),
                }
            )
        for precision, told in (lower[model] if lower else {}).items():
            same = {name: told[name] for name in ("opset", "drop_pp", "images", "holds", "kept")}
            nodes = told["nodes_low"] + told["nodes_fp32"]
            made = {"made_by": told["measured_by"], "nodes_before": None, "nodes": nodes, "refused": {}}
            rows.append({"model": model, "precision": precision, **made, **same})
    return rows
