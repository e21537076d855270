"""Profiles on graphs whose work is counted by hand, and on events that are written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import UserError
from runtime.profile.layers import Profile, engine_profile, ort_profile, profile_of, weighted_layers
from tests.runtime.nets import SHAPE, images, write_onnx


def convolutions(path: Path, channels: int = 20) -> Path:
    """first: 3 -> channels, 3x3; relu; second: in groups of 4; sum; Transpose; third: a linear layer."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "first.weight"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second.weight"], ["c"], "second", group=4),
        helper.make_node("Add", ["c", "b"], ["d"], "sum"),
        helper.make_node("ReduceMean", ["d", "axes"], ["e"], "mean", keepdims=0),
        helper.make_node("Gemm", ["e", "third.weight"], ["logits"], "third", transB=1),
    ]
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [
            weight("first.weight", channels, 3, 3, 3), weight("second.weight", channels, channels // 4, 1, 1),
            weight("third.weight", 5, channels), numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def test_layers_of_a_graph_with_what_is_fused_into_them(tmp_path: Path) -> None:
    layers = weighted_layers(convolutions(tmp_path / "net.onnx"))
    assert {name: layers[name].layer for name in ("first", "a", "relu", "b", "c", "d", "third")} == {
        "first": "first", "a": "first", "relu": "first", "b": "first", "c": "second", "d": "second", "third": "third",
    }  # fmt: skip
    assert "mean" not in layers and "e" not in layers
    assert (layers["second"].channels, layers["second"].weight_shape) == (20, (20, 5, 1, 1))
    assert layers["third"].channels == 5
    gemm = weighted_layers(write_onnx(tmp_path / "gemm.onnx"))
    assert gemm["logits"].layer == "weight" and gemm["logits"].channels == 4


def test_work_and_time_of_every_layer(tmp_path: Path) -> None:
    """Batch 2, 8x8: first 2*64*20*27, second 2*64*20*5, third 2*20*5 multiply-accumulates."""
    feed = {"input": np.ones((2, 3, 8, 8), np.float32)}
    told = ort_profile(convolutions(tmp_path / "net.onnx"), feed, threads=1, runs=5)
    by_layer = {kernel.layer: kernel for kernel in told.kernels if kernel.layer}
    assert {name: kernel.macs for name, kernel in by_layer.items()} == {"first": 69120, "second": 12800, "third": 200}
    assert [by_layer[name].channels for name in ("first", "second", "third")] == [20, 20, 5]
    assert (by_layer["first"].width or 0) >= 20
    assert all(kernel.us >= 0 for kernel in told.kernels)
    assert told.run_us >= sum(kernel.us for kernel in told.kernels) * 0.5
    assert by_layer["first"].moved >= 4 * (2 * 3 * 64 + 2 * 20 * 64)
    assert any(kernel.operator == "ReduceMean" and kernel.layer is None for kernel in told.kernels)


def event(name: str, us: float, operator: str = "Conv", **arguments: Any) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"op_name": operator, **arguments}}


def test_quiet_ones_of_the_last_runs_and_what_lies_between(tmp_path: Path) -> None:
    layers = weighted_layers(convolutions(tmp_path / "net.onnx"))
    padded: dict[str, Any] = {
        "input_type_shape": [{"float": [1, 3, 8, 8]}, {"float": [24, 3, 3, 3]}],
        "output_type_shape": [{"float": [1, 24, 8, 8]}],
        "activation_size": "768", "parameter_size": "2592", "output_size": "6144",
    }  # fmt: skip
    runs = [
        [event("b_nchwc", us, **padded), event("Reorder", 3.0, "ReorderOutput"),
         {"cat": "Session", "name": "model_run", "dur": us + 10}]
        for us in (900.0, 20.0, 30.0, 40.0)
    ]  # fmt: skip
    told = profile_of([one for run in runs for one in run], layers, runs=3)
    conv, reorder = told.kernels
    assert (conv.us, conv.layer, conv.channels, conv.width, conv.macs) == (20.0, "first", 20, 24, 64 * 20 * 27)
    assert conv.moved == 768 + 2592 + 6144
    assert reorder.reformats and not conv.reformats
    assert (told.run_us, told.between_us) == (30.0, 7.0)
    assert Profile((conv,), 10.0).between_us == 0.0


class Engine:
    """A session of TensorRT whose profiler tells these times."""

    launches = 0

    def launch(self) -> None:
        self.launches += 1

    def wait(self) -> None:
        pass

    def layer_times(self, runs: int) -> dict[str, list[float]]:
        return {"Reformatting CopyNode for Input Tensor 0": [4.0], "first + relu": [9.0, 11.0, 10.0], "mean": [1.0]}


def test_layers_of_an_engine_by_the_nodes_in_their_names(tmp_path: Path) -> None:
    session = Engine()
    told = engine_profile(session, weighted_layers(convolutions(tmp_path / "net.onnx")), runs=3)
    assert [(kernel.layer, kernel.us, kernel.reformats) for kernel in told.kernels] == [
        (None, 4.0, True), ("first", 9.0, False), (None, 1.0, False),
    ]  # fmt: skip
    assert told.run_us == 14.0 and session.launches == 5


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"cannot load .*broken\.onnx"):
        ort_profile(path, {}, threads=1)
    profile = ort_profile(write_onnx(tmp_path / "net.onnx"), {"input": images(1)}, threads=1, runs=2)
    assert sum(kernel.macs for kernel in profile.kernels) == 4 * int(np.prod(SHAPE))
