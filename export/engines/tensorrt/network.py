"""The strongly typed network that TensorRT's parser makes of an ONNX file: its layers, types and work."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from export.engines.proof import Precision, Product, Proof, prove
from export.engines.tensorrt.features import Features
from runtime.backends.trt_library import Log
from runtime.errors import UserError

TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4"}
_CONVOLUTIONS = {"CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer"}
_MATRIX = "MATRIX_MULTIPLY"
_MOVES = ("SHUFFLE", "IDENTITY", "SLICE", "PADDING")  # hand on the values they get, in the type they get


def parse(onnx: str, trt: Any, builder: Any, can: Features, log: Log, name: str) -> tuple[Any, Any]:
    """The network and its parser, which owns the weights and must outlive the build. `UserError`: unreadable, with the
    first error and its node; `name` is TensorRT's."""
    network = builder.create_network(can.network_flags)
    parser = trt.OnnxParser(network, log.logger)
    log.begin()
    parsed = parser.parse_from_file(onnx)
    first = parser.get_error(0) if parser.num_errors else None
    if parsed and network.num_outputs:
        return network, parser
    if first is not None and first.node_operator():
        raise UserError(
            f"{name} cannot read {onnx}: node {first.node_name()!r} ({first.node_operator()}): {first.desc()}",
            "operators that its ONNX parser knows",
            "replace that operator in the network",
        )
    reason = "it has no output" if parsed else first.desc() if first is not None else log.reason()
    raise UserError(f"{name} cannot read {onnx}: {reason}", "a whole ONNX file", "export the network again")


def tensor(handle: Any) -> dict[str, Any]:
    """Name, dtype (NumPy's name) and shape (null where it varies) of an input or output."""
    kind = handle.dtype.name
    if kind not in TYPES:
        raise UserError(
            f"{handle.name} is of the type {kind}", f"one of {', '.join(TYPES.values())}", "cast it in the graph"
        )
    return {"name": handle.name, "dtype": TYPES[kind], "shape": [None if dim < 0 else int(dim) for dim in handle.shape]}


def layer_table(network: Any) -> dict[str, dict[str, int]]:
    """Layers by kind and by TensorRT's name of the type of their first output."""
    table: dict[str, Counter[str]] = {}
    for layer in _layers(network):
        if layer.num_outputs:
            table.setdefault(layer.type.name, Counter())[layer.get_output(0).dtype.name] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(table.items())}


def network_proof(network: Any, trt: Any, precision: Precision) -> Proof:
    """Every product with the type it computes in: int8 where data and weights both come from int8 by a dequantisation,
    which TensorRT fuses into the product; else the type of its first output."""
    layers = _layers(network)
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    counts = Counter(layer.type.name for layer in layers)
    products = [
        Product(layer.name, _precision(layer, makers), _macs(layer, trt))
        for layer in layers
        if layer.type.name in (*_CONVOLUTIONS, _MATRIX)
    ]
    return prove(
        "network",
        precision,
        products,
        reformats=0,  # the builder adds those later
        casts=counts["CAST"],
        quantizes=counts["QUANTIZE"] + counts["DEQUANTIZE"],
    )


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _precision(layer: Any, makers: dict[str, Any]) -> str:
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    sources = [_quantized(handle, makers) for handle in inputs[:2] if handle is not None]
    if len(sources) == 2 and sources[0] is not None and sources[0] == sources[1]:
        return sources[0]
    return _named(layer.get_output(0))


def _quantized(handle: Any, makers: dict[str, Any]) -> str | None:
    """The precision before the dequantisation that makes this tensor, None where there is none."""
    maker = makers.get(handle.name)
    while maker is not None and maker.type.name in _MOVES:
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type.name != "DEQUANTIZE":
        return None
    return _named(maker.get_input(0))


def _named(handle: Any) -> str:
    kind: str = handle.dtype.name
    return PRECISIONS.get(kind, kind.lower())


def _macs(layer: Any, trt: Any) -> int:
    """Multiply-accumulates for one image; dimensions that vary count as 1."""
    input_size, output_size = _volume(layer.get_input(0)), _volume(layer.get_output(0))
    kind = layer.type.name
    if kind == _MATRIX:
        shape = layer.get_output(0).shape
        rows = output_size // max(int(shape[-1]), 1) if len(shape) else 1
        return int(output_size * max(input_size // max(rows, 1), 1))
    layer.__class__ = getattr(trt, _CONVOLUTIONS[kind])  # how the bindings cast a layer to its own kind
    window = prod(int(size) for size in layer.kernel_size_nd)
    if kind == "DECONVOLUTION":
        return input_size * window * int(layer.num_output_maps) // int(layer.num_groups)
    return output_size * window * int(layer.get_input(0).shape[1]) // int(layer.num_groups)


def _volume(handle: Any) -> int:
    return prod(max(int(dim), 1) for dim in handle.shape)
