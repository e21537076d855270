"""Every generated config is what Triton's own message definition accepts, with the model's own values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from export.engines import manifest
from export.onnx.graph import TensorSpec, read_graph
from export.serving.pbtxt import (
    DATA_TYPES,
    Extras,
    Serving,
    Signature,
    config_text,
    signature_of_engine,
    signature_of_onnx,
)
from runtime.errors import UserError
from tests.export.graphs import conv_net, save
from tests.export.small_engines import document, stand_in

text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config(signature: Signature, name: str = "net", labels: bool = False, **changes: Any) -> Any:
    return parsed(config_text(name, signature, Serving(**changes), Extras(labels=labels)))


def test_onnx_with_a_dynamic_batch(tmp_path: Path) -> None:
    signature = signature_of_onnx(read_graph(conv_net(tmp_path / "net.onnx")), 64)
    told = config(signature, "digits", labels=True, instances=2, queue_delay_us=250)
    assert (told.name, told.platform, told.backend, told.max_batch_size) == ("digits", "onnxruntime_onnx", "", 64)
    assert [(i.name, i.data_type, list(i.dims)) for i in told.input] == [
        ("input", model_config_pb2.TYPE_FP32, [3, 8, 8])
    ]
    assert [(o.name, o.data_type, list(o.dims), o.label_filename) for o in told.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [5], "labels.txt")
    ]
    assert told.version_policy.HasField("all")
    assert [(g.kind, g.count) for g in told.instance_group] == [(model_config_pb2.ModelInstanceGroup.KIND_AUTO, 2)]
    assert told.dynamic_batching.max_queue_delay_microseconds == 250
    assert list(told.dynamic_batching.preferred_batch_size) == []


def test_onnx_with_a_fixed_batch_keeps_it_in_the_dims(tmp_path: Path) -> None:
    told = config(signature_of_onnx(read_graph(conv_net(tmp_path / "net.onnx", batch=4)), 64))
    assert told.max_batch_size == 0
    assert list(told.input[0].dims) == [4, 3, 8, 8]
    assert list(told.output[0].dims) == [4, 5]
    assert not told.HasField("dynamic_batching")  # Triton refuses it for models without batching


def test_engine_is_bound_by_its_profile(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine")
    told = config(signature_of_engine(manifest.read(engine)))
    assert (told.platform, told.max_batch_size) == ("tensorrt_plan", 16)
    assert list(told.dynamic_batching.preferred_batch_size) == [8]
    assert [group.kind for group in told.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]
    assert [list(i.dims) for i in told.input] == [[3, 8, 8]]


def test_engine_that_does_not_take_one_image_is_refused(tmp_path: Path) -> None:
    shapes = {key: [size, 3, 8, 8] for key, size in (("min", 2), ("opt", 8), ("max", 16))}
    engine = stand_in(tmp_path / "x.engine", profiles=[{"input": shapes}])
    with pytest.raises(UserError, match=r"x\.engine takes batches from 2; batches from 1"):
        signature_of_engine(manifest.read(engine))
    fixed = [{"name": "input", "dtype": "float32", "shape": [2, 3, 8, 8]}]
    alone = manifest.Manifest.model_validate(document(engine, inputs=fixed, profiles=[]))
    assert signature_of_engine(alone).max_batch == 0


@pytest.mark.parametrize("dtype", sorted(DATA_TYPES))
def test_every_type_has_tritons_name(dtype: str) -> None:
    spec = TensorSpec("x", dtype, (None, 2))
    told = config(Signature("onnxruntime_onnx", (spec,), (spec,), 8))
    bits = {"bool": "BOOL", "bfloat16": "BF16", "object": "STRING"}.get(dtype) or dtype.upper().replace("FLOAT", "FP")
    assert model_config_pb2.DataType.Name(told.input[0].data_type) == f"TYPE_{bits}"
    assert told.output[0].data_type == told.input[0].data_type


def test_a_type_that_triton_has_not_is_refused() -> None:
    spec = TensorSpec("x", "complex64", (None, 2))
    with pytest.raises(UserError, match="input 'x' is of type complex64; one of bool, uint8"):
        config(Signature("onnxruntime_onnx", (spec,), (spec,), 8))
    assert "complex64" not in DATA_TYPES


def test_an_output_of_one_number_per_image_gets_a_dimension_and_unknown_ones_stay_open() -> None:
    x = TensorSpec("x", "float32", (None, 2))
    outputs = (TensorSpec("score", "float32", (None,)), TensorSpec("boxes", "float32", (None, None, 4)))
    told = config(Signature("onnxruntime_onnx", (x,), outputs, 8))
    assert list(told.output[0].dims) == [1]
    assert told.output[0].HasField("reshape")
    assert list(told.output[0].reshape.shape) == []
    assert list(told.output[1].dims) == [-1, 4]


@given(st.text(min_size=1))
def test_any_tensor_name_survives(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate is in no ONNX file: protobuf strings are UTF-8
    spec = TensorSpec(name, "float32", (None, 2))
    told = config(Signature("onnxruntime_onnx", (spec,), (spec,), 8))
    assert told.input[0].name == name
    assert told.output[0].name == name


def test_the_message_definition_does_refuse() -> None:
    """The check above would be worth nothing if it took everything."""
    spec = TensorSpec("x", "float32", (None, 2))
    text = config_text("net", Signature("onnxruntime_onnx", (spec,), (spec,), 8), Serving(queue_delay_us=1))
    assert parsed(text).max_batch_size == 8
    for wrong in (
        text.replace("max_batch_size", "max_batch"),
        text.replace("TYPE_FP32", "TYPE_FP31"),
        text.replace("dims: [2]", "dims: [two]"),
        text.replace("max_batch_size: 8", "max_batch_size: 99999999999"),
        text.replace("KIND_AUTO", "KIND_TPU"),
        text.rstrip()[:-1],
    ):
        assert wrong != text
        with pytest.raises(text_format.ParseError):
            parsed(wrong)


def test_two_inputs(tmp_path: Path) -> None:
    add = helper.make_node("MatMul", ["input", "w"], ["logits"])
    path = save(tmp_path / "net.onnx", [add], {"w": np.ones((7, 5), np.float32)}, shape=(7,))
    model = onnx.load(str(path))
    model.graph.input.append(helper.make_tensor_value_info("mask", onnx.TensorProto.BOOL, ["batch", 7]))
    told = config(signature_of_onnx(model, 4))
    assert [(i.name, list(i.dims)) for i in told.input] == [("input", [7]), ("mask", [7])]
    assert told.input[1].data_type == model_config_pb2.TYPE_BOOL


def profile(low: int, opt: int, high: int) -> dict[str, dict[str, list[int]]]:
    return {"input": {key: [size, 3, 8, 8] for key, size in (("min", low), ("opt", opt), ("max", high))}}


def test_several_profiles_are_all_used_as_far_as_they_leave_no_gap(tmp_path: Path) -> None:
    """Triton runs a batch with the profile whose range it lies in and whose optimum is nearest."""
    engine = stand_in(tmp_path / "x.engine", profiles=[profile(1, 1, 4), profile(5, 16, 32), profile(40, 48, 64)])
    told = config(signature_of_engine(manifest.read(engine)))
    assert told.max_batch_size == 32
    assert list(told.instance_group[0].profile) == ["0", "1", "2"]
    assert list(told.dynamic_batching.preferred_batch_size) == [16]
    bounded = signature_of_engine(manifest.read(engine), 8)
    assert (bounded.max_batch, bounded.preferred) == (8, ())


def test_one_profile_is_not_named(tmp_path: Path) -> None:
    told = config(signature_of_engine(manifest.read(stand_in(tmp_path / "x.engine"))))
    assert list(told.instance_group[0].profile) == []
    assert told.max_batch_size == 16


def test_a_preferred_batch_over_the_largest_is_refused(tmp_path: Path) -> None:
    signature = signature_of_onnx(read_graph(conv_net(tmp_path / "net.onnx")), 16)
    with pytest.raises(UserError, match=r"the preferred batch 17 for 'net'; 1 to 16; set publish.preferred_batches"):
        config(signature, preferred=(4, 17))
    assert list(config(signature, preferred=(16, 4)).dynamic_batching.preferred_batch_size) == [4, 16]


def test_cuda_graphs_are_for_engines_of_one_size(tmp_path: Path) -> None:
    told = config(signature_of_engine(manifest.read(stand_in(tmp_path / "x.engine"))), cuda_graphs=True)
    graphs = [(spec.batch_size, list(spec.input["input"].dim)) for spec in told.optimization.cuda.graph_spec]
    assert told.optimization.cuda.graphs and graphs == [(1, [3, 8, 8]), (8, [3, 8, 8])]
    spec = TensorSpec("x", "float32", (None, None, 2))
    with pytest.raises(UserError, match="CUDA graphs for an input of open size"):
        config(Signature("tensorrt_plan", (spec,), (spec,), 8), cuda_graphs=True)
