"""The widths that ONNX Runtime's blocked kernels take: by hand, and in the graphs that it optimises."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.surgery.align import PER_LAYER, distinct
from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.cut.kernels import onnxruntime_multiples
from pipeline.surgery.shrink import cut_of
from pipeline.surgery.trace import trace
from tests.pipeline.surgery_training.nets import kill

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def analysed() -> Analysis:
    """20, 12 and 10 channels, of which 9, 5 and 3 live; convolutions read the first alone, products the others."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip
    kill(model, {"1": list(range(9, 20)), "4": list(range(7))})
    with torch.no_grad():
        hidden = model.get_submodule("8")
        assert isinstance(hidden, nn.Linear)
        hidden.weight[3:] = 0
        hidden.bias[3:] = -1
    return cut_of(trace(model.eval(), EXAMPLE), None)[0]


def test_a_multiple_of_4_where_a_convolution_reads() -> None:
    assert sorted(onnxruntime_multiples(analysed()).values()) == [1, 1, 1, 4]  # the outputs too


def test_it_is_one_more_candidate() -> None:
    """Per layer 12 + 5 + 3; a multiple of 4 everywhere keeps 12 + 8 + 4."""
    analysis = analysed()
    candidates = {c.label: c for c in distinct(analysis, (1, 4), onnxruntime_multiples(analysis))}
    assert {label: c.channels for label, c in candidates.items()} == {
        "per layer": 12 + 5 + 3, "1": 9 + 5 + 3, "4": 12 + 8 + 4, "dense": 20 + 12 + 10,
    }  # fmt: skip
    alike = distinct(analysis, (1, 4), dict.fromkeys(onnxruntime_multiples(analysis), 4))
    assert [c.label for c in alike] == ["1", "4", "dense"]
    assert distinct(analysis, (1,), onnxruntime_multiples(analysis))[0].sizes == [PER_LAYER]


def blocked(width: int, path: Path) -> list[bool]:
    """Whether each of three convolutions, of 16, `width` and 32 channels, runs in blocked kernels."""
    drawn = np.random.default_rng(0)
    shapes = {"w0": (16, 16, 3, 3), "w1": (width, 16, 3, 3), "w2": (32, width, 3, 3)}
    nodes = [
        helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"conv{i}", pads=[1, 1, 1, 1])
        for i in range(3)
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 8, 8]) for n, c in (("x0", 16), ("x3", 32))]
    weights = [numpy_helper.from_array(drawn.random(s, np.float32), name) for name, s in shapes.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.domain.endswith("nchwc") for node in onnx.load(str(path)).graph.node if node.op_type == "Conv"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the rule was seen on x86")
@pytest.mark.parametrize("width", [18, 20, 24, 30, 32])
def test_onnx_runtime_asks_for_it_where_a_convolution_reads_and_nowhere_else(width: int, tmp_path: Path) -> None:
    """The second convolution makes `width` channels, the third reads them."""
    assert blocked(width, tmp_path / "optimised.onnx") == [True, True, width % 4 == 0]
    assert blocked(16, tmp_path / "whole.onnx") == [True] * 3
