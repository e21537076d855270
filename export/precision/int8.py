"""int8 written into a graph as pairs of QuantizeLinear and DequantizeLinear, where TensorRT wants them.

Ranges and pairs come from ONNX Runtime's quantiser (calibrators and `QDQQuantizer`). Symmetric, zero point 0, one scale
for an activation and one for each output channel of a weight. Pairs stand at the inputs of weighted layers and at both
inputs of residual additions, not at the outputs of layers: there TensorRT fuses bias, addition and ReLU into the
convolution. Biases stay fp32, which TensorRT demands.

ONNX Runtime's kernels for CPUs want another form: activations in uint8 with a zero point, which takes the ReLU in,
pairs at the outputs of convolutions and additions too, and biases in int32.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from export.onnx import graph
from runtime.errors import UserError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OPERATORS = (*WEIGHTED, "Add")
PASSING = ("Relu", "Clip", "MaxPool", "AveragePool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
"""In int8 where what they read is, in ONNX Runtime's form."""
PIECE = 4  # images whose activations are in memory at once while histograms are taken
Runtime = Literal["tensorrt", "onnxruntime"]
Weights = Literal["channel", "tensor"]


@dataclass(frozen=True)
class Calibration:
    """How activation ranges are found, and whose form the pairs have. `percentile` (of the magnitudes) belongs to the
    method of that name. `weights`: a scale for each output channel, or one for the whole weight."""

    method: Literal["minmax", "percentile", "entropy"] = "percentile"
    percentile: float = 99.99
    runtime: Runtime = "tensorrt"
    weights: Weights = "channel"


def layers_of(model: onnx.ModelProto) -> list[str]:
    """Names of the layers whose precision decides speed and size, in their order: those with a constant weight."""
    constant = _constants(model)
    return [n.name for n in model.graph.node if n.op_type in WEIGHTED and n.input[1] in constant]


def residual_adds(model: onnx.ModelProto) -> list[str]:
    """Names of the additions of two activations."""
    constant = _constants(model)
    return [n.name for n in model.graph.node if n.op_type == "Add" and constant.isdisjoint(n.input)]


def ranges_of(source: Path, batches: Iterable[graph.Array], calibration: Calibration) -> Any:
    """ONNX Runtime's `TensorsData` of all activations around the layers, from `batches` (B, ...) of the only input.

    `UserError`: there are no images, or ONNX Runtime does not run the graph.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[calibration.method]
    plain = calibration.runtime == "tensorrt"
    options: dict[str, Any] = {"symmetric": plain}
    if calibration.method == "percentile":
        options["percentile"] = calibration.percentile
    name = graph.inputs_of(graph.read_graph(source))[0].name
    # ONNX Runtime's histograms report their progress by print()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        try:
            calibrator = create_calibrator(
                str(source),
                list(OPERATORS if plain else (*OPERATORS, *PASSING)),
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=method,
                extra_options=options,
            )
            if calibration.method != "minmax":
                calibrator.collector = _histograms(calibrator)
            pieces = 0
            for piece in _pieces(batches, PIECE if calibration.method != "minmax" else None):
                calibrator.collect_data(_Reader(name, piece))
                pieces += 1
            if not pieces:
                raise UserError("no images for calibration", "at least one training image", "check the data section")
            return calibrator.compute_data()
        except UserError:
            raise
        except Exception as error:  # the calibrators raise ValueError and whatever ONNX Runtime does
            raise UserError(
                f"{source} cannot be calibrated: {graph.first_line(error)}", "a graph that runs", "leave int8 out"
            ) from error


def _histograms(calibrator: Any) -> Any:
    """ONNX Runtime's collector, which fails on values too near each other for its bins, e.g. the sum within a local
    response norm, all within 1e-5 of 1: such values get a zero beside them, so that their bins begin there."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    class Collector(HistogramCollector):  # type: ignore[misc]  # ONNX Runtime has no types
        def collect(self, name_to_arr: dict[str, Any]) -> Any:
            return super().collect({name: _apart(values, self.num_bins) for name, values in name_to_arr.items()})

    options = ("method", "symmetric", "num_bins", "num_quantized_bins", "percentile", "scenario")
    return Collector(**{name: getattr(calibrator, name) for name in options})


def _apart(values: list[graph.Array], bins: int) -> list[graph.Array]:
    sizes = np.abs(np.concatenate([value.ravel() for value in values]))
    if not sizes.size or not (sizes.max() > 0 and sizes.max() - sizes.min() < 4 * bins * np.spacing(sizes.max())):
        return values
    return [np.concatenate([*(value.ravel() for value in values), np.zeros(1, sizes.dtype)])]


def quantise(
    model: onnx.ModelProto, ranges: Any, keep: Collection[str], source: Path, calibration: Calibration
) -> onnx.ModelProto:
    """`model` with pairs at every layer but those in `keep`, and at the residual additions that follow a layer in int8.

    In TensorRT's form every other node reads the values as they were, also where another reader has a pair; in ONNX
    Runtime's only the layers in `keep` do. `ranges` are those of the calibration. `UserError`: the quantiser fails.
    """
    layers = [name for name in layers_of(model) if name not in keep]
    chosen = layers + _adds_after(model, set(layers))
    if not chosen:
        return copy.deepcopy(model)
    exact_layers = set(layers_of(model)) - set(layers)
    readers = {node.name for node in model.graph.node} - set(chosen)
    if calibration.runtime == "onnxruntime":
        readers = _exact(model, exact_layers)
        chosen += [n.name for n in model.graph.node if n.op_type in PASSING and n.name not in readers]
    try:
        quantiser = _quantiser(copy.deepcopy(model), ranges, chosen, calibration)
        quantiser.quantize_model()
        quantiser.model.topological_sort()
        result: onnx.ModelProto = quantiser.model.model
        _read_unquantised(result, readers)
        result.ClearField("metadata_props")
        result.metadata_props.extend(model.metadata_props)
        result.producer_name, result.producer_version = model.producer_name, model.producer_version
        onnx.checker.check_model(result, full_check=True)
    except Exception as error:  # the quantiser documents no exceptions of its own
        raise UserError(
            f"{source} cannot be quantised: {graph.first_line(error)}", "a graph in fp32", "leave int8 out"
        ) from error
    return result


def _quantiser(model: onnx.ModelProto, ranges: Any, nodes: list[str], calibration: Calibration) -> Any:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    plain = calibration.runtime == "tensorrt"
    return QDQQuantizer(
        model,
        calibration.weights == "channel",
        False,
        QuantType.QInt8,
        QuantType.QInt8 if plain else QuantType.QUInt8,
        ranges,
        nodes,
        [],
        list(OPERATORS if plain else (*OPERATORS, *PASSING)),
        {
            "ActivationSymmetric": plain,
            "WeightSymmetric": True,
            "QuantizeBias": not plain,
            # a product's output may stay in fp32 there too, so the logits are not rounded
            "OpTypesToExcludeOutputQuantization": list(OPERATORS) if plain else ["Gemm", "MatMul"],
        },
    )


def _adds_after(model: onnx.ModelProto, layers: set[str]) -> list[str]:
    """Residual additions one side of which comes from a layer in `layers`, activations and the like in between."""
    producer = {name: node for node in model.graph.node for name in node.output}
    passed = ("Relu", "Clip", "LeakyRelu", "BatchNormalization", "Mul", "Sigmoid", "Add")

    def from_layer(name: str, steps: int = 8) -> bool:
        node = producer.get(name)
        if node is None or steps == 0:
            return False
        return node.name in layers or (node.op_type in passed and from_layer(node.input[0], steps - 1))

    adds = set(residual_adds(model))
    return [n.name for n in model.graph.node if n.name in adds and any(map(from_layer, n.input))]


def _exact(model: onnx.ModelProto, names: set[str]) -> set[str]:
    """`names` and what hands values on to them. A ReLU that is part of a quantisation would leave no value behind it,
    and ONNX Runtime quantises a layer that it finds between two pairs."""
    maker = {name: node for node in model.graph.node for name in node.output}
    exact = set(names)
    read = [name for node in model.graph.node if node.name in names for name in node.input]
    while read:
        node = maker.get(read.pop())
        if node is not None and node.op_type in PASSING and node.name not in exact:
            exact.add(node.name)
            read += node.input
    return exact


def _read_unquantised(model: onnx.ModelProto, readers: set[str]) -> None:
    """Gives `readers` back the values that the quantiser put a pair behind; drops pairs nobody reads."""
    producer = {name: node for node in model.graph.node for name in node.output}

    def raw(name: str) -> str:
        dequantise = producer.get(name)
        if dequantise is None or dequantise.op_type != "DequantizeLinear":
            return name
        quantiser = producer.get(dequantise.input[0])
        return name if quantiser is None or quantiser.op_type != "QuantizeLinear" else quantiser.input[0]

    for node in model.graph.node:
        if node.name in readers:
            for index, name in enumerate(node.input):
                node.input[index] = raw(name)
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
        nodes = [node for node in model.graph.node if node.op_type != kind or node.output[0] in read]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    read = {name for node in model.graph.node for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)


def _constants(model: onnx.ModelProto) -> set[str]:
    names = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    return names | {tensor.name for tensor in model.graph.initializer}


def _pieces(batches: Iterable[graph.Array], size: int | None) -> Iterator[graph.Array]:
    for batch in batches:
        for start in range(0, len(batch), size or max(len(batch), 1)):
            yield batch[start : start + (size or len(batch))]


class _Reader:
    """What a calibrator reads: one piece, then None."""

    def __init__(self, name: str, piece: graph.Array) -> None:
        self._rest = [{name: piece}]

    def get_next(self) -> graph.Feeds | None:
        return self._rest.pop() if self._rest else None
