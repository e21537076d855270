"""Both JSON schemas of the engine inspector, in the words that TensorRT's documentation and its tools print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from export.engines.tensorrt.inspector import engine_layers, engine_proof
from runtime.errors import UserError


def tensor10(name: str, shape: list[int], text: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": shape, "Format/Datatype": text}


def tensor11(name: str, shape: list[int], kind: str, key: str = "DataType") -> dict[str, Any]:
    return {"Name": name, "Dimensions": shape, "Format": "LINEAR", key: kind}


def conv(given: dict[str, Any], made: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"ParameterType": "Convolution", "Kernel": [3, 3], "Groups": 1, "OutMaps": made["Dimensions"][1]}
    kind = {"Name": "conv1 + relu1", "LayerType": "CaskConvolution"}
    return {**kind, "Inputs": [given], "Outputs": [made], **parameters, **more}


def reformat(given: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    return {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Inputs": [given], "Outputs": [made]}


INT8 = "Thirty-two wide channel vectorized row major Int8 format."
LINEAR = "Row major linear FP32"
TEN = {
    "Layers": [
        reformat(tensor10("x", [1, 3, 8, 8], LINEAR), tensor10("y", [1, 3, 8, 8], INT8)),
        conv(tensor10("y", [1, 3, 8, 8], INT8), tensor10("z", [1, 8, 8, 8], INT8), Weights={"Type": "Int8"}),
        reformat(tensor10("z", [1, 8, 8, 8], INT8), tensor10("z2", [1, 8, 8, 8], "Row major Int8 format")),
        conv(tensor10("z2", [1, 8, 8, 8], "Two wide channel vectorized row major FP16 format"),
             tensor10("w", [1, 8, 8, 8], "Half"), Weights={"Type": "Half"}),
    ],
    "Bindings": ["x", "w"],
}  # fmt: skip
ELEVEN = {
    "Layers": [
        {"Name": "cast", "LayerType": "Cast", "Inputs": [tensor11("x", [1, 16], "FP32")],
         "Outputs": [tensor11("y", [1, 16], "FP16")]},
        {"Name": "gemm_0", "LayerType": "MatrixMultiply", "Inputs": [tensor11("y", [1, 16], "FP16", "Datatype")],
         "Outputs": [tensor11("z", [1, 16], "FP16")]},
        {"Name": "myl_conv_1", "LayerType": "kgen", "Inputs": [tensor11("z", [1, 16], "BFloat16")], "Outputs": []},
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "INPUT", "DataType": "FP32"}, {"Name": "z", "IOMode": "OUTPUT"}],
}  # fmt: skip


def test_ten() -> None:
    told = engine_proof(json.dumps(TEN), "int8")
    assert told.products == {"fp16": 1, "int8": 1}
    first, second = 8 * 64 * 9 * 3, 8 * 64 * 9 * 8  # out channels x pixels x window x in channels
    assert told.share == round(first / (first + second), 6)
    assert (told.reformats, told.casts, told.unknown) == (2, 1, 0)  # only the first changes the type
    assert told.source == "engine"


def test_eleven() -> None:
    told = engine_proof(json.dumps(ELEVEN), "fp16")
    assert told.products == {"bf16": 1, "fp16": 1}
    assert (told.share, told.reformats, told.casts) == (0.5, 0, 1)
    assert told.others == ("myl_conv_1",)


def test_names_alone_prove_nothing() -> None:
    told = engine_proof(json.dumps({"Layers": ["conv1 + relu1", "Reformatting"], "Bindings": []}), "fp16")
    assert (told.unknown, told.products) == (1, {})
    layers = engine_layers(json.dumps({"Layers": ["conv1"], "I/O Tensors": []}))
    assert layers == [{"Name": "conv1"}]


def test_a_type_that_dynamic_shapes_hide_is_unknown() -> None:
    hidden = conv(tensor10("x", [-1, 3, 8, 8], "N/A due to dynamic shapes"), tensor10("y", [-1, 8, 8, 8], "N/A"))
    told = engine_proof(json.dumps({"Layers": [hidden], "Bindings": []}), "fp16")
    assert told.unknown == 1
    with_weights = {**hidden, "Weights": {"Type": "BFloat16", "Count": 216}}
    assert engine_proof(json.dumps({"Layers": [with_weights], "Bindings": []}), "bf16").products == {"bf16": 1}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": []}', '{"Layers": 3, "Bindings": []}', '{"Bindings": []}']
)
def test_what_is_neither_schema(text: str) -> None:
    with pytest.raises(UserError, match="engine inspector's answer") as caught:
        engine_layers(text)
    assert "report this" in caught.value.remedy
