"""What is particular to ONNX Runtime sessions: threads, denormals, odd graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx.graph import open_graph, run_graph
from runtime.backends import onnxruntime as ort_backend
from runtime.backends import open_session
from runtime.errors import UserError
from tests.runtime.nets import write_onnx

TINY = np.float32(1e-40)  # below the smallest normal float32, 1.18e-38


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_denormals_are_flushed_in_the_run_and_kept_outside(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    values = numpy_helper.from_array(np.full((1, 4096), TINY), "tiny")
    graph = helper.make_graph(
        [helper.make_node("Add", ["input", "tiny"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4096])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4096])],
        [values],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    session = open_session(path, backend, device="cpu", threads=2)
    assert session.settings["denormals"] == "flushed to zero"
    session.bind({"input": np.zeros((8, 4096), np.float32)})
    session.launch()
    assert np.count_nonzero(session.fetch()["logits"]) == 0
    assert np.count_nonzero(np.full(64, TINY) * np.float32(1.0)) == 64
    session.close()


def largest_products(path: Path) -> Path:
    """64 products of 255 and 127, in int8, and their sum in steps of 64 * 127: 16 bits do not hold two of them."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["input", "one", "u8"], ["q"]), node("DequantizeLinear", ["q", "one", "u8"], ["d"]),
        node("DequantizeLinear", ["weight", "one", "i8"], ["w"]), node("MatMul", ["d", "w"], ["sum"]),
        node("QuantizeLinear", ["sum", "step", "u8"], ["r"]), node("DequantizeLinear", ["r", "step", "u8"], ["logits"]),
    ]  # fmt: skip
    constants: dict[str, Any] = {
        "one": np.float32(1), "step": np.float32(64 * 127), "u8": np.uint8(0), "i8": np.int8(0),
        "weight": np.full((64, 16), 127, np.int8),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "a graph"])
def test_int8_products_do_not_saturate(tmp_path: Path, backend: str) -> None:
    """Seen to fail on processors without VNNI alone, where ONNX Runtime's own default gives half of it."""
    path, x = largest_products(tmp_path / "net.onnx"), np.full((2, 64), 255, np.float32)
    if backend == "a graph":
        (logits,) = run_graph(open_graph(path), x)
    else:
        session = open_session(path, backend, device="cpu", threads=1)
        session.bind({"input": x})
        session.launch()
        logits = session.fetch()["logits"]
        session.close()
    assert np.array_equal(logits, np.full((2, 16), 64 * 127 * 255, np.float32))


def test_threads_and_providers_are_recorded(tmp_path: Path) -> None:
    session = open_session(write_onnx(tmp_path / "net.onnx"), device="cpu", threads=2)
    assert session.settings["threads"] == 2
    assert session.settings["provider"] == "CPUExecutionProvider"
    session.close()


def test_static_and_dynamic_axes(tmp_path: Path) -> None:
    session = open_session(write_onnx(tmp_path / "net.onnx", batch=2), device="cpu", threads=1)
    assert session.inputs[0].shape == (2, 2, 3, 3)
    assert session.outputs[0].shape == (2, 4)
    with pytest.raises(UserError, match=r"fed the shape \(3, 2, 3, 3\); \(2, 2, 3, 3\)"):
        session.bind({"input": np.zeros((3, 2, 3, 3), np.float32)})
    session.close()


def test_a_run_that_fails_is_one_line(tmp_path: Path) -> None:
    session = open_session(write_onnx(tmp_path / "net.onnx", side="side"), device="cpu", threads=1)
    session.bind({"input": np.zeros((1, 2, 3, 5), np.float32)})
    with pytest.raises(UserError, match=r"ONNX Runtime failed on net\.onnx") as caught:
        session.launch()
    assert "\n" not in str(caught.value)
    session.close()


def test_an_input_type_numpy_lacks(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.STRING, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "s.onnx")
    with pytest.raises(UserError, match=r"input is a tensor\(string\)") as caught:
        open_session(tmp_path / "s.onnx", device="cpu")
    assert "tensor(float)" in caught.value.expected


def test_providers_in_the_order_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    preloaded: list[bool] = []
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: every)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: preloaded.append(True), raising=False)
    assert ort_backend._providers("auto", False) == [cuda, "CPUExecutionProvider"]
    assert ort_backend._providers("cpu", False) == ["CPUExecutionProvider"]
    assert ort_backend._providers("cuda", True) == [("TensorrtExecutionProvider", {}), cuda, "CPUExecutionProvider"]
    assert len(preloaded) == 2  # not for the CPU alone
    with pytest.raises(UserError, match="device cpu for the TensorRT provider"):
        ort_backend._providers("cpu", True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert ort_backend._providers("auto", False) == ["CPUExecutionProvider"]
    with pytest.raises(UserError, match="has no TensorRT provider; onnxruntime-gpu"):
        ort_backend._providers("auto", True)
    with pytest.raises(UserError, match="has no CUDA provider; onnxruntime-gpu"):
        ort_backend._providers("cuda", False)
