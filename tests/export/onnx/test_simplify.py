"""A simplified graph is taken only where it is the same function with the same interface."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim
import pytest
from onnx import helper, numpy_helper

from export.onnx.simplify import simplify
from runtime.errors import UserError
from tests.export.graphs import conv_net, images, save


def redundant_net(path: Path) -> Path:
    """Identity, two constants added, MatMul of the flat image: 5 nodes of which MatMul, Flatten and Add must stay."""
    weights = {"w": np.full((192, 5), 0.01, np.float32), "a": np.ones(5, np.float32), "b": np.full(5, 2.0, np.float32)}
    nodes = [
        helper.make_node("Identity", ["input"], ["same"], name="same"),
        helper.make_node("Add", ["a", "b"], ["three"], name="fold"),
        helper.make_node("Flatten", ["same"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "three"], ["logits"], name="bias"),
    ]
    return save(path, nodes, weights)


def run(path: Path, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = session.run(None, {"input": images(size)})[0]
    return result


def test_removes_what_does_nothing(tmp_path: Path) -> None:
    source = redundant_net(tmp_path / "net.onnx")
    made = simplify(source, tmp_path / "out" / "net.onnx", max_abs_diff=1e-5, samples=images(4))
    assert (made.used, made.refused) == ("onnxsim", {})
    assert (made.nodes_before, made.nodes_after) == (5, len(onnx.load(str(made.path)).graph.node))
    kinds = Counter(node.op_type for node in onnx.load(str(made.path)).graph.node)
    assert kinds["Identity"] == 0
    assert kinds["Add"] + kinds["Gemm"] == 1  # the two constants are one now
    for size in (1, 9):
        expected = images(size).reshape(size, -1) @ np.full((192, 5), 0.01, np.float32) + 3
        np.testing.assert_allclose(run(made.path, size), expected, atol=1e-5)
    assert made.max_abs_diff < 1e-5


def test_keeps_the_interface_and_our_metadata_only(tmp_path: Path) -> None:
    made = simplify(redundant_net(tmp_path / "net.onnx"), tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4))
    model = onnx.load(str(made.path))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [(item.key, item.value) for item in model.metadata_props] == [("plan", "abc")]


Change = Callable[[onnx.ModelProto], onnx.ModelProto]


def other_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name == "b3":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), "b3"))
    return model


def fixed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    return model


def invalid(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].input[0] = "nothing"
    return model


def wrong_only_at_other_batches(model: onnx.ModelProto) -> onnx.ModelProto:
    """The mean as a reshape to one row: right at batch 1, an error at 5."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 8, 64], np.int64), "one"))
    reshape = helper.make_node("Reshape", ["r2", "one"], ["flat"])
    mean = next(index for index, node in enumerate(model.graph.node) if node.op_type == "ReduceMean")
    model.graph.node.insert(mean, reshape)
    model.graph.node[mean + 1].input[0] = "flat"
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
    model.graph.node[mean + 1].input[1] = "last"
    return model


def fails(model: onnx.ModelProto) -> onnx.ModelProto:
    raise RuntimeError("optimizer gave up\nwith a second line")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_weights, "its outputs differ by 0.01 at batch 1, over 1e-05"),
        (fixed_batch, "its inputs changed from input float32[None, 3, 8, 8] to input float32[1, 3, 8, 8]"),
        (renamed, "its outputs changed from logits float32[None, 5] to scores float32[None, 5]"),
        (invalid, "onnx.checker refuses it: Nodes in a graph must be topologically sorted"),
        (wrong_only_at_other_batches, "ONNX Runtime fails on it: "),
        (fails, "onnxsim failed: optimizer gave up"),
    ],
)
def test_falls_back_to_the_original_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, reason: str
) -> None:
    source = conv_net(tmp_path / "net.onnx")
    monkeypatch.setattr(onnxsim, "simplify", lambda model: (change(copy.deepcopy(model)), True))
    monkeypatch.setattr(onnxslim, "slim", lambda model: change(copy.deepcopy(model)))
    made = simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4))
    assert made.used == "original"
    assert list(made.refused) == ["onnxsim", "onnxslim"]
    for tool, told in made.refused.items():
        assert told.startswith(reason.replace("onnxsim", tool))
        assert "\n" not in told
    assert made.path.read_bytes() == source.read_bytes()
    assert (made.nodes_before, made.nodes_after, made.max_abs_diff) == (6, 6, 0.0)


def test_dimensions_that_nobody_had_inferred_may_become_known(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    model = onnx.load(str(source))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    onnx.save(model, str(source))
    made = simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4))
    assert made.used == "onnxsim"
    dims = onnx.load(str(made.path)).graph.output[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch"


def test_a_fixed_side_in_place_of_a_dynamic_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed_side(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        changed = copy.deepcopy(model)
        changed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", fixed_side)
    source = conv_net(tmp_path / "net.onnx", side="side")
    made = simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4), tools=("onnxsim",))
    assert made.used == "original"
    assert "its inputs changed" in made.refused["onnxsim"]


def test_onnxslim_stands_in_where_onnxsim_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxsim, "simplify", lambda model: (other_weights(conv_net_like(model)), True))
    source = redundant_net(tmp_path / "net.onnx")
    made = simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4))
    assert made.used == "onnxslim"
    assert made.refused == {"onnxsim": "its outputs differ by 1 at batch 1, over 1e-05"}
    assert made.nodes_before == 5 and made.nodes_after <= 3
    model = onnx.load(str(made.path))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [(item.key, item.value) for item in model.metadata_props] == [("plan", "abc")]
    expected = images(3).reshape(3, -1) @ np.full((192, 5), 0.01, np.float32) + 3
    np.testing.assert_allclose(run(made.path, 3), expected, atol=1e-5)


def conv_net_like(model: onnx.ModelProto) -> onnx.ModelProto:
    """The redundant net with its constant `a` one larger."""
    changed = copy.deepcopy(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "a":
            tensor.CopyFrom(numpy_helper.from_array(np.full(5, 2.0, np.float32), "a"))
    return changed


def test_a_simplifier_that_is_not_installed_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    source = redundant_net(tmp_path / "net.onnx")
    made = simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4))
    assert made.used == "original"
    assert made.refused["onnxslim"].startswith("onnxslim is not installed (")
    assert made.path.read_bytes() == source.read_bytes()


def test_several_inputs_of_several_types(tmp_path: Path) -> None:
    weights = {"table": np.arange(12, dtype=np.float32).reshape(4, 3), "zero": np.zeros(3, np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["row"], name="row"),
        helper.make_node("Add", ["row", "zero"], ["same"], name="same"),
        helper.make_node("Mul", ["same", "scale"], ["scaled"], name="scaled"),
    ]
    inputs = [
        helper.make_tensor_value_info("index", onnx.TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, ["batch", 1]),
    ]
    outputs = [helper.make_tensor_value_info("scaled", onnx.TensorProto.FLOAT, ["batch", 3])]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "net", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    source = tmp_path / "net.onnx"
    onnx.save(model, str(source))
    samples = {"index": np.array([3, 0, 1]), "scale": np.array([[2.0], [1.0], [-1.0]], np.float32)}
    made = simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-6, samples=samples)
    assert (made.used, made.nodes_after) == ("onnxsim", 2)
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, samples)
    np.testing.assert_array_equal(rows, [[18, 20, 22], [0, 1, 2], [-3, -4, -5]])
    with pytest.raises(UserError, match=r"inputs index int64\[None\], scale float32\[None, 1\]; samples for scale"):
        simplify(source, tmp_path / "t.onnx", max_abs_diff=1e-6, samples={"index": samples["index"]})


def test_a_foreign_detector_with_a_fixed_batch(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "weights" / "linzaer_version-slim-320_simplified.onnx"
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 240, 320)).astype(np.float32)
    made = simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-4, samples=x)
    assert made.used == "onnxsim"
    assert made.nodes_after <= made.nodes_before == 95
    before, after = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (source, made.path)
    )
    outputs = [
        dict(zip(("scores", "boxes"), s.run(["scores", "boxes"], {"input": x[:1]}), strict=True))
        for s in (before, after)
    ]
    assert outputs[0]["boxes"].shape == (1, 4420, 4)
    np.testing.assert_allclose(outputs[0]["scores"], outputs[1]["scores"], atol=1e-4)


def test_refuses_samples_that_do_not_fit_and_files_that_do_not_run(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"the samples have the shape \[3, 9, 9\]"):
        simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4, side=9))
    model = onnx.load(str(source))
    model.graph.node[0].domain = "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    onnx.save(model, str(source))
    with pytest.raises(UserError, match="ONNX Runtime fails on"):
        simplify(source, tmp_path / "s.onnx", max_abs_diff=1e-5, samples=images(4))
    assert not (tmp_path / "s.onnx").exists()
