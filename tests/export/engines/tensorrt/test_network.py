"""The network that the real parser of TensorRT-RTX makes: types, int8 from Q/DQ pairs, and work."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.engines.proof import Precision, Proof, check
from export.engines.tensorrt.features import features
from export.engines.tensorrt.network import layer_table, network_proof, parse
from runtime.backends.trt_library import Log
from runtime.errors import UserError
from tests.export.graphs import conv_net
from tests.export.small_engines import needs_rtx, typed_net

pytestmark = needs_rtx
CONV1, CONV2, FC = 8 * 64 * 27, 8 * 64 * 72, 5 * 8  # multiply-accumulates of `conv_net` on one 3x8x8 image


def proof_of(path: Path, precision: Precision) -> Proof:
    trt = importlib.import_module("tensorrt_rtx")
    log = Log(trt, io.StringIO())
    builder = trt.Builder(log.logger)
    network, parser = parse(str(path), trt, builder, features(trt), log, "rtx")
    assert parser.num_errors == 0
    assert layer_table(network)["CONVOLUTION"]
    return network_proof(network, trt, precision)


def quantized(path: Path, which: Sequence[str], inputs: int = 2) -> Path:
    """`conv_net` with Q/DQ pairs before the data, and with 2 `inputs` before the weights, of the named convolutions."""
    model = onnx.load(str(conv_net(path)))
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.05, np.float32), "scale"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int8), "zero"))
    nodes = []
    for node in graph.node:
        for index in range(inputs) if node.name in which else ():
            source = node.input[index]
            made = onnx.helper.make_node
            nodes.append(made("QuantizeLinear", [source, "scale", "zero"], [f"{source}_q"], name=f"{source}_quantize"))
            nodes.append(
                made("DequantizeLinear", [f"{source}_q", "scale", "zero"], [f"{source}_dq"], name=f"{source}_d")
            )
            node.input[index] = f"{source}_dq"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def test_work_and_types(tmp_path: Path) -> None:
    told = proof_of(conv_net(tmp_path / "net.onnx"), "fp32")
    assert (told.share, told.products, told.casts) == (1.0, {"fp32": 3}, 0)
    for precision, kind in (("fp16", "FLOAT16"), ("bf16", "BFLOAT16")):
        told = proof_of(typed_net(tmp_path / "typed.onnx", kind), precision)  # type: ignore[arg-type]  # Precisions
        assert (told.share, told.products, told.casts) == (1.0, {precision: 3}, 2)


def test_int8_is_seen_through_the_pairs(tmp_path: Path) -> None:
    told = proof_of(quantized(tmp_path / "net.onnx", ["conv1", "conv2"]), "int8")
    assert told.products == {"fp32": 1, "int8": 2}
    assert told.share == round((CONV1 + CONV2) / (CONV1 + CONV2 + FC), 6)
    assert told.quantizes == 8
    check(told, "net.onnx")


def test_int8_data_with_weights_in_fp32_is_no_int8(tmp_path: Path) -> None:
    told = proof_of(quantized(tmp_path / "net.onnx", ["conv1", "conv2"], inputs=1), "int8")
    assert (told.products, told.share, told.quantizes) == ({"fp32": 3}, 0.0, 4)
    with pytest.raises(UserError, match="3 in float32, 100% of the multiply-accumulates"):
        check(told, "net.onnx")


def test_int8_in_the_smaller_layer_only_is_refused(tmp_path: Path) -> None:
    told = proof_of(quantized(tmp_path / "net.onnx", ["conv1"]), "int8")
    assert told.share == round(CONV1 / (CONV1 + CONV2 + FC), 6)
    assert told.others == ("conv2", "fc")
    with pytest.raises(UserError, match="2 in float32, 73% of the multiply-accumulates, first 'conv2'"):
        check(told, "net.onnx")
