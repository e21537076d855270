"""Reading, describing, running and comparing ONNX graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from export.onnx import graph
from runtime.errors import UserError
from tests.export.graphs import conv_net, images, save


def test_describes_inputs_and_outputs(tmp_path: Path) -> None:
    model = graph.read_graph(conv_net(tmp_path / "net.onnx"))
    assert graph.inputs_of(model) == (graph.TensorSpec("input", "float32", (None, 3, 8, 8)),)
    assert graph.outputs_of(model) == (graph.TensorSpec("logits", "float32", (None, 5)),)
    assert graph.opset_of(model) == 18


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = onnx.load(str(conv_net(tmp_path / "net.onnx")))
    model.graph.input.append(helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, [8, 3, 3, 3]))
    assert [spec.name for spec in graph.inputs_of(model)] == ["input"]
    assert len(model.graph.input) == 2


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08"], ids=["empty", "text", "cut"])
def test_refuses_what_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        graph.read_graph(path)
    assert str(path) in caught.value.found
    assert "\n" not in str(caught.value)


def test_refuses_a_missing_file_and_external_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.onnx is missing"):
        graph.read_graph(tmp_path / "gone.onnx")
    model = onnx.load(str(conv_net(tmp_path / "net.onnx", width=32)))
    path = tmp_path / "split.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=16)
    with pytest.raises(UserError, match="keeps weights in another file"):
        graph.read_graph(path)


def test_over_two_gib_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph.read_graph(conv_net(tmp_path / "net.onnx"))
    assert graph.write_graph(model, tmp_path / "fits.onnx") == (tmp_path / "fits.onnx").stat().st_size
    monkeypatch.setattr(graph, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="2 GiB"):
        graph.write_graph(model, tmp_path / "large.onnx")
    assert not (tmp_path / "large.onnx").exists()


def test_runs_and_cycles_rows(tmp_path: Path) -> None:
    session = graph.open_graph(conv_net(tmp_path / "net.onnx"))
    x = images(2)
    five = graph.rows(x, 5)
    np.testing.assert_array_equal(five, np.stack([x[0], x[1], x[0], x[1], x[0]]))
    (logits,) = graph.run_graph(session, five)
    assert logits.shape == (5, 5)
    np.testing.assert_allclose(logits[2], logits[0], atol=1e-6)


def test_runtime_failures_are_graph_errors(tmp_path: Path) -> None:
    session = graph.open_graph(conv_net(tmp_path / "net.onnx"))
    with pytest.raises(graph.GraphError, match="Got: 4 Expected: 3"):
        graph.run_graph(session, images(1, channels=4))
    node = helper.make_node("Mystery", ["input"], ["logits"], domain="nobody")
    unknown = onnx.load(str(conv_net(tmp_path / "net.onnx")))
    del unknown.graph.node[:]
    unknown.graph.node.append(node)
    unknown.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(graph.GraphError, match="Mystery"):
        graph.open_graph(unknown)


def test_worst_difference_counts_what_is_not_finite() -> None:
    a = np.array([1.0, np.inf, np.nan], np.float32)
    assert graph.worst_difference([a], [a.copy()]) == 0.0
    assert graph.worst_difference([a], [np.array([1.5, np.inf, np.nan], np.float32)]) == 0.5
    assert graph.worst_difference([a], [np.array([1.0, 2.0, np.nan], np.float32)]) == float("inf")
    assert graph.worst_difference([a], [np.array([1.0, np.inf, 0.0], np.float32)]) == float("inf")
    assert graph.worst_difference([a], [a[:2]]) == float("inf")
    assert graph.worst_difference([a, a], [a, np.array([1.0, -np.inf, np.nan], np.float32)]) == float("inf")


def test_probes_are_real_rows_then_noise_alike_on_every_call() -> None:
    x = images(3)
    pairs = [[probe["input"] for probe in graph.probes({"input": x}, (1, 5))] for _ in range(2)]
    first, second = pairs
    assert [probe.shape[0] for probe in first] == [1, 5, 1, 5]
    np.testing.assert_array_equal(first[1][:3], x)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.isin(first[3], x).any()
    assert {probe.dtype for probe in first} == {np.dtype(np.float32)}
    tokens = np.array([[7, 9], [9, 7]])
    drawn = graph.probes({"tokens": tokens}, (4,))[1]["tokens"]
    assert drawn.shape == (4, 2) and drawn.dtype == tokens.dtype and set(drawn.flat) == {7, 9}


def test_feeds_name_what_does_not_fit(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx")
    model = graph.read_graph(path)
    assert list(graph.feeds_of(model, images(1), path)) == ["input"]
    assert graph.feeds_of(model, {"input": images(1).astype(np.float64)}, path)["input"].dtype == np.float32
    with pytest.raises(UserError, match=r"samples have the shape \[3, 9, 9\]; \[3, 8, 8\]"):
        graph.feeds_of(model, images(1, side=9), path)
    with pytest.raises(UserError, match=r"has the inputs input float32\[None, 3, 8, 8\]; samples for input"):
        graph.feeds_of(model, {"image": images(1)}, path)
    matrix = {"w": np.ones((7, 5), np.float32)}
    product = helper.make_node("MatMul", ["input", "w"], ["logits"])
    flat = graph.read_graph(save(tmp_path / "flat.onnx", [product], matrix, shape=(7,)))
    with pytest.raises(UserError, match=r"has the inputs input float32\[None, 7\]; one input of 4 axes"):
        graph.feeds_of(flat, images(1), path)
    assert graph.fixed_batch(flat) is None
    assert graph.fixed_batch(onnx.load(str(conv_net(tmp_path / "two.onnx", batch=2)))) == 2
