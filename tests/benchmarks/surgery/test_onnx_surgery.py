"""The benchmark of cuts in ONNX files: a row of a tool that is exact, of one that is not, of one that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.surgery import onnx_surgery
from tests.pipeline.models.onnx.graphs import graph, with_zero_rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    nodes = [onnx.helper.make_node("Conv", ["x", "a"], ["h"]), onnx.helper.make_node("Conv", ["h", "b"], ["y"])]
    weights = {"a": with_zero_rows(6, 3, 1, 1, dead=[1, 4]), "b": with_zero_rows(5, 6, 1, 1, dead=[])}
    onnx.save(graph(nodes, weights, {"x": ("N", 3, 96, 96)}, ["y"]), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def other(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    return model


def broken(path: Path) -> onnx.ModelProto:
    raise ValueError("no such layer\nand more")


def test_rows(file: Path) -> None:
    before = onnx.load(file)
    expected = onnx_surgery.answers(before)
    rows = {
        name: onnx_surgery.row(tool, file, before, expected, 1)
        for name, tool in (*onnx_surgery.TOOLS.items(), ("other", other), ("broken", broken))
    }
    for name in ("demport", "demport, proven"):
        assert rows[name]["exact"] and rows[name]["removed_pct"] == pytest.approx(100 * (48 - 32) / 48)
    assert not rows["other"]["exact"] and np.isclose(rows["other"]["rel_diff"], 1.0)
    assert rows["other"]["removed_pct"] == 0 and rows["onnxsim"]["exact"]
    assert rows["broken"]["time_s"] is None and rows["broken"]["reason"] == "ValueError: no such layer"
