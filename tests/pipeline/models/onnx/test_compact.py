"""Cuts written back into the file: which channels are left was worked out by hand, the values by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline.models.onnx import network_from_model
from pipeline.models.onnx.compact import rewritten
from pipeline.models.onnx.compact.edit import HeldError
from pipeline.surgery import shrink
from runtime.errors import UserError
from tests.pipeline.models.onnx.graphs import Weights, answers, graph, normal, with_zero_rows

node = helper.make_node
PADS: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def cut(model: onnx.ModelProto, *hold: int) -> onnx.ModelProto:
    network = network_from_model(model, Path("x.onnx"), hold=hold)
    assert set(network.frozen.values()) <= {"a layer norm counts the channels it reads"}
    return rewritten(network, shrink(network.module, network.example).model)


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in model.graph.initializer}


def same(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Weights) -> bool:
    pairs = zip(answers(before, feeds), answers(after, feeds), strict=True)
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in pairs)


def pair(middle: list[onnx.NodeProto], weights: Weights, reads: int, opset: int = 13) -> onnx.ModelProto:
    """A convolution of 6 channels of which 1 and 4 are dead, then `middle` from h to g, then one that reads `reads`."""
    all_weights = {"a": with_zero_rows(6, 3, 3, 3, dead=[1, 4]), "b": normal(5, reads, 1, 1, seed=1), **weights}
    nodes = [node("Conv", ["x", "a"], ["h"], "first", **PADS), *middle, node("Conv", ["g", "b"], ["y"], "second")]
    return graph(nodes, all_weights, {"x": ("N", 3, 8, 8)}, ["y"], opset)


def test_a_relu_between_two_convolutions_and_all_else_stays() -> None:
    model = pair([node("Relu", ["h"], ["g"], "act")], {}, 6)
    model.metadata_props.add(key="author", value="somebody")
    model.producer_name = "elsewhere"
    after = cut(model)
    assert shapes(after) == {"a": [4, 3, 3, 3], "b": [5, 4, 1, 1]}
    assert [n.name for n in after.graph.node] == ["first", "act", "second"]
    assert after.metadata_props == model.metadata_props and after.producer_name == "elsewhere"
    assert after.graph.input == model.graph.input and after.opset_import == model.opset_import
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.array_equal(numpy_helper.to_array(after.graph.initializer[0]), weights["a"][[0, 2, 3, 5]])
    assert same(model, after, {"x": normal(3, 3, 8, 8)})


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_a_split_of_channels(opset: int) -> None:
    sizes: Weights = {"sizes": np.array([4, 2])} if opset >= 13 else {}
    attribute: dict[str, Any] = {} if sizes else {"split": [4, 2]}
    split = node("Split", ["h", *sizes], ["p", "q"], axis=1, **attribute)
    concat = node("Concat", ["q", "p"], ["g"], axis=1)
    model = pair([split, concat], sizes, 6, opset)
    after = cut(model)
    assert shapes(after)["a"] == [4, 3, 3, 3] and shapes(after)["b"] == [5, 4, 1, 1]
    assert same(model, after, {"x": normal(2, 3, 8, 8)})
    lengths = [v for k, v in shapes(after).items() if k not in "ab"]
    assert lengths == ([[2]] if opset >= 13 else [])


def test_a_shuffle_of_channels_then_slices() -> None:
    weights: Weights = {"in": np.array([0, 2, 3, 8, 8]), "out": np.array([0, 6, 8, 8]), "zero": np.array([0]),
                        "three": np.array([3]), "six": np.array([6]), "one": np.array([1])}  # fmt: skip
    middle = [
        node("Reshape", ["h", "in"], ["r"]), node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "out"], ["s"]), node("Slice", ["s", "zero", "three", "one"], ["p"]),
        node("Slice", ["s", "three", "six", "one"], ["q"]), node("Concat", ["q", "p"], ["g"], axis=1),
    ]  # fmt: skip
    model = pair(middle, weights, 6)
    after = cut(model)
    assert shapes(after)["a"] == [4, 3, 3, 3] and shapes(after)["b"] == [5, 4, 1, 1]
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


def test_channels_taken_by_number() -> None:
    model = pair([node("Gather", ["h", "order"], ["g"], axis=1)], {"order": np.array([5, 4, 2, 0, 3, 1])}, 6)
    after = cut(model)
    assert shapes(after)["a"] == [4, 3, 3, 3] and shapes(after)["b"] == [5, 4, 1, 1]
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


def test_padded_channels_are_constants_that_go() -> None:
    model = pair([node("Pad", ["h", "pads"], ["g"])], {"pads": np.array([0, 1, 0, 0, 0, 2, 0, 0])}, 9)
    after = cut(model)
    assert shapes(after)["b"][1] < 9 and shapes(after)["a"][0] < 6
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


def test_a_resize_to_sizes_that_name_the_channels() -> None:
    sizes = np.array([2, 6, 16, 24])
    model = pair([node("Resize", ["h", "", "", "sizes"], ["g"], mode="linear")], {"sizes": sizes}, 6)
    after = cut(model)
    assert shapes(after) == {"a": [4, 3, 3, 3], "b": [5, 4, 1, 1], "sizes_compact": [4]}
    weights = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    assert weights["sizes_compact"].tolist() == [2, 4, 16, 24]
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


@pytest.mark.parametrize(("batch", "channels"), [("N", "read"), (2, "read"), ("N", "written")])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_resize_to_the_sizes_of_another_tensor(batch: str | int, channels: str, mode: str) -> None:
    """As torch writes `interpolate(h, size=x.shape[2:])` for images of any size; the sizes name h's channels too, read
    off its shape or written down."""
    asked: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if mode == "linear":
        asked = {"mode": mode, "coordinate_transformation_mode": "pytorch_half_pixel"}
    middle = [
        node("MaxPool", ["h"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["p"], ["ps"]), node("Slice", ["ps", "zero", "two"], ["own"]),
        node("Shape", ["x"], ["xs"]), node("Slice", ["xs", "two", "four"], ["places"]),
        node("Slice", ["xs", "zero", "one"], ["images"]),
        node("Concat", [*(["own"] if channels == "read" else ["images", "six"]), "places"], ["sizes"], axis=0),
        node("Resize", ["p", "", "", "sizes"], ["g"], **asked),
    ]  # fmt: skip
    numbers = {"zero": 0, "one": 1, "two": 2, "four": 4, "six": 6}
    model = pair(middle, {name: np.array([n]) for name, n in numbers.items()}, 6)
    for axis, size in ((0, batch), (2, "H"), (3, "W")):
        dim = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.CopyFrom(onnx.TensorShapeProto.Dimension(dim_param=size) if isinstance(size, str) else
                     onnx.TensorShapeProto.Dimension(dim_value=size))  # fmt: skip
    del model.graph.value_info[:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [batch, 5, "H", "W"]))
    network = network_from_model(model, Path("x.onnx"), (3, 8, 8))
    assert not network.frozen
    after = rewritten(network, shrink(network.module, network.example).model)
    assert shapes(after)["a"] == [4, 3, 3, 3] and shapes(after)["b"] == [5, 4, 1, 1]
    for height, width in ((8, 8), (6, 14)):
        assert same(model, after, {"x": normal(2, 3, height, width)})


def test_a_depthwise_convolution_loses_groups() -> None:
    model = pair([node("Conv", ["h", "d"], ["g"], "deep", group=6, **PADS)], {"d": normal(6, 1, 3, 3)}, 6)
    after = cut(model)
    assert shapes(after) == {"a": [4, 3, 3, 3], "b": [5, 4, 1, 1], "d": [4, 1, 3, 3]}
    assert [a.i for a in after.graph.node[1].attribute if a.name == "group"] == [4]
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


def test_a_gate_of_each_channel() -> None:
    weights = {"s": normal(2, 6, 1, 1), "e": normal(6, 2, 1, 1)}
    middle = [
        node("GlobalAveragePool", ["h"], ["m"]), node("Conv", ["m", "s"], ["u"]), node("Relu", ["u"], ["v"]),
        node("Conv", ["v", "e"], ["w"]), node("HardSigmoid", ["w"], ["z"], alpha=1 / 6), node("Mul", ["h", "z"], ["g"]),
    ]  # fmt: skip
    model = pair(middle, weights, 6)
    after = cut(model)
    assert shapes(after) == {"a": [4, 3, 3, 3], "b": [5, 4, 1, 1], "s": [2, 4, 1, 1], "e": [4, 2, 1, 1]}
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


def test_a_constant_channel_becomes_a_bias_where_there_was_none() -> None:
    bias = np.array([0, 2, 0, 0, 0, 0], np.float32)
    weights = {"a": with_zero_rows(6, 3, dead=[1, 4]).T.copy(), "c": bias, "b": normal(6, 5, seed=1)}
    nodes = [node("Gemm", ["x", "a", "c"], ["h"]), node("Relu", ["h"], ["g"]), node("MatMul", ["g", "b"], ["y"])]
    model = graph(nodes, weights, {"x": ("N", 3)}, ["y"])
    after = cut(model)
    assert [n.op_type for n in after.graph.node] == ["Gemm", "Relu", "MatMul", "Add"]
    assert shapes(after)["a"] == [3, 4] and shapes(after)["b"] == [4, 5] and after.graph.node[-1].output[0] == "y"
    added = numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == after.graph.node[-1].input[1]))
    assert np.allclose(added, 2 * weights["b"][1]) and same(model, after, {"x": normal(4, 3)})


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_constants_before_a_padded_layer_become_a_channel_of_ones(opset: int) -> None:
    bias = np.array([0, 2, 0, 0, 3, 0], np.float32)
    weights = {"a": with_zero_rows(6, 3, 3, 3, dead=[1, 4]), "c": bias, "b": normal(5, 6, 3, 3, seed=1)}
    nodes = [node("Conv", ["x", "a", "c"], ["h"], "first", **PADS), node("Conv", ["h", "b"], ["y"], "second", **PADS)]
    model = graph(nodes, weights, {"x": ("N", 3, 8, 8)}, ["y"], opset)
    after = cut(model)
    assert [n.op_type for n in after.graph.node] == ["Conv", "Pad", "Conv"]
    assert shapes(after)["a"] == [4, 3, 3, 3] and shapes(after)["b"] == [5, 5, 3, 3]
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


def test_a_weight_that_two_layers_share() -> None:
    weights = {"a": with_zero_rows(6, 3, 3, 3, dead=[1, 4]), "b": normal(5, 6, 1, 1, seed=1)}
    nodes = [node("Conv", [x, "a"], [f"h{x}"], **PADS) for x in ("x", "z")]
    nodes += [node("Conv", [f"h{x}", "b"], [f"y{x}"]) for x in ("x", "z")]
    model = graph(nodes, weights, {"x": ("N", 3, 8, 8), "z": ("N", 3, 8, 8)}, ["yx", "yz"])
    after = cut(model)
    assert shapes(after) == {"a": [4, 3, 3, 3], "b": [5, 4, 1, 1]}
    assert same(model, after, {"x": normal(2, 3, 8, 8), "z": normal(2, 3, 8, 8, seed=3)})


def test_a_batch_norm_that_two_layers_share() -> None:
    """Conv, norm and Relu twice, with the weights of one layer: all of it is cut for both, and stays shared."""
    norm = {
        "g": np.array([1, 0, 2, 3, 0, 1]),
        "e": np.array([1, 0, 2, 3, 0, -1]),
        "m": normal(6),
        "v": normal(6) ** 2 + 1,
    }
    weights: Weights = {"a": normal(6, 3, 3, 3), "b": normal(5, 6, 1, 1, seed=1)}
    weights |= {name: values.astype(np.float32) for name, values in norm.items()}
    nodes = []
    for x in ("x", "z"):
        nodes += [node("Conv", [x, "a"], [f"h{x}"], **PADS), node("BatchNormalization", [f"h{x}", *"gemv"], [f"n{x}"])]
        nodes += [node("Relu", [f"n{x}"], [f"r{x}"]), node("Conv", [f"r{x}", "b"], [f"y{x}"])]
    model = graph(nodes, weights, {"x": ("N", 3, 8, 8), "z": ("N", 3, 8, 8)}, ["yx", "yz"])
    network = network_from_model(model, Path("x.onnx"))
    after = rewritten(network, shrink(network.module, network.example).model)  # verified in float64
    assert shapes(after) == {"a": [4, 3, 3, 3], "b": [5, 4, 1, 1], "g": [4], "e": [4], "m": [4], "v": [4]}
    assert same(model, after, {"x": normal(2, 3, 8, 8), "z": normal(2, 3, 8, 8, seed=3)})


def test_a_mean_over_channels_and_sizes_that_are_read() -> None:
    mean = node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=1)
    model = pair([mean, node("Shape", ["h"], ["s"]), node("Gather", ["s", "i"], ["c"]),
                  node("Cast", ["c"], ["f"], to=1), node("Mul", ["h", "f"], ["k"]), node("Relu", ["k"], ["g"])],
                 {"i": np.array(1)}, 6)  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info("m", 1, ["N", 1, 8, 8]))
    after = cut(model)
    assert shapes(after)["a"] == [4, 3, 3, 3] and "Shape" not in {n.op_type for n in after.graph.node}
    assert [n.op_type for n in after.graph.node if "m" in n.output] == ["Mul"]
    assert same(model, after, {"x": normal(2, 3, 8, 8)})


def test_a_single_number_off_a_shape_stays_a_single_number() -> None:
    """It goes into sizes that vary: batch times width, then a reshape there and back."""
    weights: Weights = {"zero": np.array(0), "two": np.array(2), "ax": np.array([0]), "rest": np.array([6, 8])}
    middle = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Gather", ["s", "two"], ["w"]),
        node("Mul", ["n", "w"], ["nw"]), node("Unsqueeze", ["nw", "ax"], ["u"]),
        node("Concat", ["u", "rest"], ["to"], axis=0), node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["t", "to"], ["r"]), node("Relu", ["r"], ["k"]), node("Reshape", ["k", "four"], ["v"]),
        node("Transpose", ["v"], ["g"], perm=[0, 2, 1, 3]),
    ]  # fmt: skip
    model = pair(middle, {**weights, "four": np.array([-1, 8, 6, 8])}, 6)
    after = cut(model)
    assert shapes(after)["a"] == [4, 3, 3, 3] and shapes(after)["b"] == [5, 4, 1, 1]
    assert same(model, after, {"x": normal(3, 3, 8, 8)})


def test_a_graph_of_one_batch_size_whose_weights_are_inputs() -> None:
    weights = {"a": with_zero_rows(6, 3, 3, 3, dead=[1, 4]), "b": normal(384, 5), "s": np.array([1, -1])}
    nodes = [
        node("Conv", ["x", "a"], ["h"], **PADS),
        node("Reshape", ["h", "s"], ["r"]),
        node("MatMul", ["r", "b"], ["y"]),
    ]
    model = graph(nodes, weights, {"x": (1, 3, 8, 8), "a": (6, 3, 3, 3)}, ["y"])
    after = cut(model)
    assert shapes(after)["b"] == [256, 5]
    assert [d.dim_value for d in after.graph.input[1].type.tensor_type.shape.dim] == [4, 3, 3, 3]
    assert same(model, after, {"x": normal(1, 3, 8, 8)})


def test_numbers_that_follow_from_the_batch_of_the_file() -> None:
    """A constant of 4 rows is added to a batch of 4: no other batch can be followed, and none has to be."""
    weights = {"rows": normal(4, 6, 1, 1, seed=2)}
    model = pair([node("Relu", ["h"], ["r"]), node("Mul", ["r", "rows"], ["g"])], weights, 6)
    with pytest.raises(UserError, match="operator Mul"):
        network_from_model(model, Path("x.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    network = network_from_model(model, Path("x.onnx"))
    assert network.batch == 4 and [tuple(x.shape) for x in network.example] == [(4, 3, 8, 8)]
    after = rewritten(network, shrink(network.module, network.example).model)
    assert shapes(after) == {"a": [4, 3, 3, 3], "b": [5, 4, 1, 1], "rows": [4, 4, 1, 1]}
    assert same(model, after, {"x": normal(4, 3, 8, 8)})


@pytest.mark.parametrize("varies", [False, True])
def test_an_expansion(varies: bool) -> None:
    """A constant shape gets the smaller size; of a computed one the node is held, and its channels stay."""
    weights = {"i": np.array([0]), "rest": np.array([6, 8, 8])} if varies else {"s": np.array([1, 6, 8, 8])}
    sizes = [
        node("Shape", ["x"], ["v"]),
        node("Gather", ["v", "i"], ["n"]),
        node("Concat", ["n", "rest"], ["s"], axis=0),
    ]
    middle = [node("GlobalAveragePool", ["h"], ["m"]), *(sizes if varies else []), node("Expand", ["m", "s"], ["g"])]
    model = pair(middle, weights, 6)
    if varies:
        with pytest.raises(HeldError) as error:
            cut(model)
        assert model.graph.node[error.value.index].op_type == "Expand"
    after = cut(model, 5) if varies else cut(model)
    assert shapes(after)["a"][0] == (6 if varies else 4)
    assert same(model, after, {"x": normal(2, 3, 8, 8)})
