"""`demport shrink --onnx` reads anybody's file: bytes damaged; numbers, names and types of the graph changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import helper

from pipeline.commands.shrink_onnx import Request, shrink_onnx
from pipeline.models.onnx import network_from_onnx
from pipeline.models.onnx.operators import OPERATORS
from pipeline.progress import open_progress
from tests.fuzz.damage import damaged_bytes
from tests.fuzz.watch import MANY, attempts, calmly
from tests.pipeline.models.onnx.graphs import Weights, graph, normal, with_zero_rows

FEW, SOME = 120, 12
node = helper.make_node
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 5, 7, 64, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63)])


def whole() -> onnx.ModelProto:
    """A little of everything: a stream, a split, a gate, shapes that are computed."""
    weights: Weights = {
        "a": with_zero_rows(6, 3, 3, 3, dead=[1, 4]), "b": with_zero_rows(6, 6, 1, 1, dead=[1, 4]), "c": normal(5, 6),
        "i": np.array([0]), "rest": np.array([-1]), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "s": np.array([2, 4]),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "a"], ["h"], "first", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Relu", ["h"], ["r"]),
        node("Conv", ["r", "b"], ["k"], "second"), node("Add", ["k", "r"], ["t"]), node("Pad", ["t", "p"], ["u"]),
        node("MaxPool", ["u"], ["m"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Split", ["m", "s"], ["q0", "q1"], axis=1), node("Concat", ["q1", "q0"], ["q"], axis=1),
        node("AveragePool", ["q"], ["v"], kernel_shape=[5, 5]), node("Shape", ["x"], ["d"]),
        node("Gather", ["d", "i"], ["n"]), node("Concat", ["n", "rest"], ["z"], axis=0),
        node("Reshape", ["v", "z"], ["f"]), node("Gemm", ["f", "c"], ["g"], transB=1), node("Softmax", ["g"], ["y"]),
    ]  # fmt: skip
    return graph(nodes, weights, {"x": ("N", 3, 8, 8)}, ["y"])


def change(model: onnx.ModelProto, draw: Any) -> None:
    """One change of a node, an attribute, a weight, an input or an operator set."""
    body = model.graph
    at = body.node[draw(st.integers(0, len(body.node) - 1))]
    weight = body.initializer[draw(st.integers(0, len(body.initializer) - 1))]
    names = st.sampled_from([n for one in body.node for n in (*one.input, *one.output)] + ["", "nothing", "\n"])
    match draw(
        st.sampled_from(("op", "input", "output", "attribute", "new attribute", "dims", "data", "type", "x", "version"))
    ):
        case "op":
            at.op_type = draw(st.sampled_from([*OPERATORS, "Nothing", "Loop", "QLinearConv", "Einsum", "TopK", "LSTM"]))
        case "input" if at.input:
            at.input[draw(st.integers(0, len(at.input) - 1))] = draw(names)
        case "output":
            at.output[0] = draw(names)
        case "attribute" if at.attribute:
            attribute = at.attribute[draw(st.integers(0, len(at.attribute) - 1))]
            attribute.i = draw(NUMBERS)
            if attribute.ints:
                attribute.ints[draw(st.integers(0, len(attribute.ints) - 1))] = draw(NUMBERS)
        case "new attribute":
            name = draw(
                st.sampled_from(
                    ("axis", "axes", "group", "strides", "dilations", "auto_pad", "ceil_mode", "to", "perm")
                )
            )
            value = draw(st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=4), st.just("SAME_UPPER")))
            at.attribute.append(helper.make_attribute(name, value))
        case "dims" if weight.dims:
            weight.dims[draw(st.integers(0, len(weight.dims) - 1))] = draw(NUMBERS)
        case "data" if weight.data_type == onnx.TensorProto.INT64:
            weight.raw_data = np.array(draw(st.lists(NUMBERS, max_size=8)), np.int64).tobytes()
        case "type":
            weight.data_type = draw(st.integers(0, 24))
        case "x":
            body.input[0].type.tensor_type.shape.dim[draw(st.integers(0, 3))].dim_value = draw(NUMBERS)
        case "version":
            model.opset_import[0].version = draw(st.integers(0, 40))


@st.composite
def damaged_graph(draw: st.DrawFn) -> bytes:
    model = whole()
    for _ in range(draw(st.integers(1, 3))):
        change(model, draw)
    return bytes(model.SerializeToString())


def damaged() -> st.SearchStrategy[bytes]:
    return st.one_of(damaged_graph(), damaged_graph(), damaged_bytes(whole().SerializeToString()))


def fuzz(folder: Path, count: int) -> int:
    """Reads `count` damaged files; how many were still good."""
    path = folder / "m.onnx"

    def attempt(data: bytes) -> bool:
        path.write_bytes(data)
        return calmly(lambda: network_from_onnx(path))

    return attempts(damaged(), count, attempt)


def fuzz_command(folder: Path, count: int) -> int:
    """Cuts `count` damaged files; nothing but a whole folder is ever there."""
    path, out = folder / "m.onnx", folder / "out"

    def attempt(data: bytes) -> bool:
        shutil.rmtree(out, ignore_errors=True)
        path.write_bytes(data)
        good = calmly(lambda: shrink_onnx(Request(path, out, None, None, 1, 1e-9), open_progress()), inside=folder)
        assert {p.name for p in folder.iterdir()} == ({"m.onnx", "out"} if good else {"m.onnx"})
        return good

    return attempts(damaged_graph(), count, attempt)


def test_the_whole_file_is_cut(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(whole().SerializeToString())
    document = shrink_onnx(Request(tmp_path / "m.onnx", tmp_path / "out", None, None, 1, 1e-9), open_progress())
    assert document["channels_after"] < document["channels_before"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.onnx", "plan.json", "certificate.json", "weights.safetensors"
    }  # fmt: skip


def test_a_few_damaged_files(tmp_path: Path, audit: None) -> None:
    assert 0 < fuzz(tmp_path, FEW) < FEW
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_few_damaged_files_are_cut(tmp_path: Path, audit: None) -> None:
    assert 0 <= fuzz_command(tmp_path, SOME) <= SOME
    assert (tmp_path / "m.onnx").exists()


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path, audit: None) -> None:
    assert 0 < fuzz(tmp_path, MANY) < MANY * 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
