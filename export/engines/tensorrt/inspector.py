"""What TensorRT's engine inspector tells of a built engine: the type each layer runs in, reformats and casts.

Its JSON has two schemas. Up to 10.x the inputs and outputs of the engine are `Bindings` and a tensor's layout and type
one text, `Format/Datatype` ("Row major linear FP16 format", or "Half"); 11.x has `I/O Tensors`, and `Format` apart from
`DataType`. Full detail needs an engine built with ProfilingVerbosity.DETAILED; without it, a layer is only its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from export.engines.proof import Precision, Product, Proof, prove
from runtime.errors import UserError

# In the order they are looked for: "Thirty-two wide channel vectorized row major Int8 format", "Two wide ... FP16 ..."
_TYPES = (
    ("int8", r"\bint8\b"),
    ("fp8", r"\b(fp8|float8|e4m3)\w*"),
    ("bf16", r"\b(bf16|bfloat16)\b"),
    ("fp16", r"\b(fp16|half|float16)\b"),
    ("fp32", r"\b(fp32|float|float32|tf32)\b"),
    ("int4", r"\bint4\b"),
)
_PRODUCT = re.compile(r"conv|gemm|matmul|matrixmultiply|matrix_multiply|fullyconnected", re.IGNORECASE)
_REFORMAT = re.compile(r"reformat", re.IGNORECASE)
_CAST = re.compile(r"cast", re.IGNORECASE)
_QUANTIZE = re.compile(r"quantize|scale_quant", re.IGNORECASE)


def engine_layers(text: str) -> list[dict[str, Any]]:
    """The layers of `get_engine_information(LayerInformationFormat.JSON)`, those that are only a name as
    {"Name": ...}. `UserError`: not JSON, or neither schema."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"the engine inspector's answer is no JSON: {error}", "its JSON", "report this") from error
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list) or not ({"Bindings", "I/O Tensors"} & content.keys()):
        raise UserError(
            "the engine inspector's answer has no Layers beside Bindings or I/O Tensors",
            "the JSON of TensorRT 10 or 11",
            "report this with the version of TensorRT",
        )
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


def engine_proof(text: str, precision: Precision) -> Proof:
    """The proof that the built engine itself gives. A product without types counts as unknown, never as right."""
    layers = engine_layers(text)
    kinds = [(layer, str(layer.get("LayerType", ""))) for layer in layers]
    products = [Product(str(layer.get("Name", "")), _precision(layer), _macs(layer)) for layer in layers if _is(layer)]
    return prove(
        "engine",
        precision,
        products,
        reformats=sum(bool(_REFORMAT.search(kind)) for _, kind in kinds),
        casts=sum(_is_cast(layer, kind) for layer, kind in kinds),
        quantizes=sum(bool(_QUANTIZE.search(kind)) for _, kind in kinds),
    )


def _is(layer: Mapping[str, Any]) -> bool:
    """Whether the layer computes products. Fused ones (Myelin, "kgen") are recognised by what they are made from: their
    kind says nothing, the metadata and the name list the ONNX nodes."""
    kind = str(layer.get("LayerType", ""))
    if _REFORMAT.search(kind):
        return False
    named = (kind, str(layer.get("ParameterType", "")), str(layer.get("Name", "")), str(layer.get("TacticName", "")))
    return any(_PRODUCT.search(text) for text in named)


def _is_cast(layer: Mapping[str, Any], kind: str) -> bool:
    """Casts proper, and reformats whose output is of another type than their input."""
    if _CAST.search(kind):
        return True
    if not _REFORMAT.search(kind):
        return False
    before, after = _types(layer.get("Inputs")), _types(layer.get("Outputs"))
    return bool(before and after and before[:1] != after[:1])


def _precision(layer: Mapping[str, Any]) -> str | None:
    """The type of the weights where told, else of the first input that has one."""
    weights = layer.get("Weights")
    weight_type = _type(str(weights.get("Type", ""))) if isinstance(weights, dict) else None
    if weight_type is not None:
        return weight_type
    return next(iter(_types(layer.get("Inputs"))), None)


def _types(tensors: object) -> list[str]:
    if not isinstance(tensors, Sequence) or isinstance(tensors, str):
        return []
    types = []
    for tensor in tensors:
        if isinstance(tensor, dict):
            texts = (tensor.get(key) for key in ("DataType", "Datatype", "Format/Datatype"))
            kind = next((kind for text in texts if text and (kind := _type(str(text)))), None)
            types += [kind] if kind else []
    return types


def _type(text: str) -> str | None:
    return next((name for name, pattern in _TYPES if re.search(pattern, text, re.IGNORECASE)), None)


def _macs(layer: Mapping[str, Any]) -> int:
    """Of a convolution that tells its window; 0 where the layer does not say."""
    inputs, outputs, window = layer.get("Inputs"), layer.get("Outputs"), layer.get("Kernel")
    if not (isinstance(inputs, list) and isinstance(outputs, list) and isinstance(window, list)):
        return 0
    input_shapes, output_shapes = (_dimensions(tensors) for tensors in (inputs, outputs))
    if len(input_shapes) < 2 or len(output_shapes) < 2:
        return 0
    groups = layer.get("Groups") or 1
    return prod(max(int(n), 1) for n in (*output_shapes[1:], *window)) * max(int(input_shapes[1]), 1) // int(groups)


def _dimensions(tensors: list[Any]) -> list[int]:
    """Of the first tensor, [] where it does not tell them."""
    first = tensors[0].get("Dimensions") if tensors and isinstance(tensors[0], dict) else None
    return first if isinstance(first, list) else []
