"""Files from anywhere: what is no graph that can be followed is refused in one line, and nothing outside is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.models.onnx import network_from_onnx
from runtime.errors import UserError
from tests.pipeline.models.onnx.graphs import graph, normal

node = helper.make_node


def model() -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["h"], "conv"), node("Relu", ["h"], ["y"], "act")]
    return graph(nodes, {"w": normal(4, 3, 3, 3)}, {"x": ("N", 3, 8, 8)}, ["y"])


def external(folder: Path, location: str, **entries: int) -> Path:
    """The model with its weight in another file, as the entries say."""
    damaged = model()
    weight = damaged.graph.initializer[0]
    (folder / "w.bin").write_bytes(b"\0" * 8 + weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    return written(folder, damaged)


def written(folder: Path, damaged: onnx.ModelProto) -> Path:
    (folder / "m.onnx").write_bytes(damaged.SerializeToString())
    return folder / "m.onnx"


def test_a_weight_in_another_file(tmp_path: Path) -> None:
    network = network_from_onnx(external(tmp_path, "w.bin", offset=8, length=432))
    assert np.array_equal(network.constants["w"], normal(4, 3, 3, 3)) and network.batch is None
    assert not network.model.graph.initializer[0].external_data


def test_nodes_in_another_order_are_sorted(tmp_path: Path) -> None:
    """As onnxruntime's converter to float16 leaves them."""
    shuffled = model()
    nodes = list(shuffled.graph.node)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(nodes))
    network = network_from_onnx(written(tmp_path, shuffled))
    assert [n.name for n in network.model.graph.node] == ["conv", "act"]
    assert network.module(*network.example).shape == (2, 4, 6, 6)


def test_other_names_of_a_weight_are_the_weight(tmp_path: Path) -> None:
    """Identities of a weight, one of another; one that is an output stays."""
    named = model()
    named.graph.node[0].input[1] = "w2"
    more = [node("Identity", ["w"], ["w1"], "one"), node("Identity", ["w1"], ["w2"], "two"), *named.graph.node]
    more.append(node("Identity", ["y"], ["same"], "of data"))
    del named.graph.node[:]
    named.graph.node.extend(more)
    named.graph.output.append(helper.make_tensor_value_info("same", TensorProto.FLOAT, ("N", 4, 6, 6)))
    network = network_from_onnx(written(tmp_path, named))
    assert [(n.name, list(n.input)) for n in network.model.graph.node] == [
        ("conv", ["x", "w"]), ("act", ["h"]), ("of data", ["y"]),
    ]  # fmt: skip
    assert {parameter.value for parameter in network.parameters.values()} == {"w"}


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("../w.bin", {"offset": 8}, "plain file beside"), ("/etc/passwd", {}, "plain file beside"),
        ("/dev/zero", {"length": 432}, "plain file beside"), ("link", {"offset": 8}, "plain file beside"),
        ("gone.bin", {}, "cannot be read"), ("w.bin", {"offset": 8, "length": 4}, "432 bytes"),
        ("w.bin", {"offset": 100}, "432 bytes"), ("w.bin", {"offset": -8}, "432 bytes"), (".", {}, "plain file beside"),
        ("w.bin", {"offset": 2**62}, "432 bytes"),
    ],
)  # fmt: skip
def test_a_weight_that_lies_elsewhere(tmp_path: Path, location: str, entries: dict[str, int], message: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder, location, **entries)
    (tmp_path / "w.bin").write_bytes(b"\0" * 440)
    (folder / "link").symlink_to(folder / "w.bin")
    with pytest.raises(UserError, match=message) as error:
        network_from_onnx(path)
    assert str(error.value).count("; ") >= 2


def _weight(change: Callable[[TensorProto], object]) -> Callable[[onnx.ModelProto], object]:
    return lambda m: change(m.graph.initializer[0])


def _add(*more: onnx.NodeProto) -> Callable[[onnx.ModelProto], object]:
    return lambda m: m.graph.node.extend(more)


def _conv(name: str, value: object) -> Callable[[onnx.ModelProto], object]:
    return lambda m: m.graph.node[0].attribute.append(helper.make_attribute(name, value))


def _dim(name: str, value: object, axis: int = 2) -> Callable[[onnx.ModelProto], object]:
    return lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[axis], name, value)


BRANCH = node("If", ["y"], ["z"], "br", then_branch=model().graph, else_branch=model().graph)
NAN = np.full(108, np.nan, np.float32).tobytes()
DAMAGE: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no nodes": (lambda m: m.graph.ClearField("node"), "no graph"),
    "old": (lambda m: setattr(m.opset_import[0], "version", 7), "operator set 7; 9 to 23"),
    "huge weight": (_weight(lambda t: t.dims.__setitem__(0, 1 << 40)), "at most 2 GiB"),
    "short weight": (_weight(lambda t: t.dims.__setitem__(0, 5)), "damaged"),
    "NaN": (_weight(lambda t: setattr(t, "raw_data", NAN)), "holds NaN"),
    "strings": (_weight(lambda t: setattr(t, "data_type", TensorProto.STRING)), "type STRING"),
    "quantised": (_add(node("DequantizeLinear", ["y", "w"], ["z"], "dq")), "node dq .*: the graph is quantised"),
    "random": (_add(node("RandomNormalLike", ["y"], ["z"], "rnd")), "node rnd .* random numbers"),
    "branch": (_add(BRANCH), "control flow"),
    "circle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "not valid ONNX"),
    "other kernel": (_conv("kernel_shape", [9, 9]), "kernel_shape"),
    "other group": (_conv("group", 3), "node conv, operator Conv"),
    "huge pads": (_conv("pads", [1 << 40] * 4), "its pads"),
    "huge input": (_dim("dim_value", 1 << 40), "at most"),
    "huge batch": (_dim("dim_value", 1 << 62, axis=0), r"\[4611686018427387904, 3, 8, 8\]; .*at most"),
    "free image": (_dim("dim_param", "H"), "--input-shape"),
    "unread output": (lambda m: setattr(m.graph.output[0], "name", "w"), "does not depend"),
    "two names": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two weights of one name"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_graph_that_cannot_be_followed_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, message = DAMAGE[case]
    damaged = model()
    change(damaged)
    with pytest.raises(UserError, match=message) as error:
        network_from_onnx(written(tmp_path, damaged))
    assert str(error.value).count("; ") >= 2 and "\n" not in str(error.value)


def test_a_size_that_varies_is_told_by_the_image(tmp_path: Path) -> None:
    free = model()
    for axis in (2, 3):
        free.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"S{axis}"
    network = network_from_onnx(written(tmp_path, free), (3, 20, 24))
    assert [tuple(x.shape) for x in network.example] == [(2, 3, 20, 24)]
    assert network.module(*network.example).shape == (2, 4, 18, 22)


def test_no_file_and_no_model(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"text that is no protobuf")
    for name, message in (("gone.onnx", "cannot be read"), ("t.onnx", "no ONNX file|no graph")):
        with pytest.raises(UserError, match=message):
            network_from_onnx(tmp_path / name)
    with pytest.raises(UserError, match="no plain file"):
        network_from_onnx(Path("/dev/zero"))
