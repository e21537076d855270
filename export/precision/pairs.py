"""Where the pairs of an int8 graph stand, and the same graph with other weights and scales.

A graph of `int8.quantise` computes what the fp32 graph that it was made of computes, each value behind a pair rounded.
Its nodes keep their names and the order of their inputs, so a pair is known by the node that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.onnx import graph

WEIGHT_LEVELS = 127
"""A weight is symmetric: -127 to 127."""


@dataclass(frozen=True)
class Pair:
    """`value` of the fp32 graph, which `node` reads as its input `index`, passes whole numbers from `low` to `high`:
    round(value / scale) + `zero_point`. `scale` names the constant that holds its one scale, or one for each index of
    `axis`."""

    node: str
    index: int
    value: str
    scale: str
    zero_point: int
    low: int
    high: int
    axis: int | None = None
    levels: str | None = None
    """The constant of whole numbers that the graph holds in the place of a weight."""


@dataclass(frozen=True)
class Values:
    """What a training leaves: `constants` of the fp32 graph (weights and biases) and `scales` of the pairs, by name."""

    constants: Mapping[str, graph.Array]
    scales: Mapping[str, graph.Array]
    epochs: int = 0
    seconds: float = 0.0


Tune = Callable[[onnx.ModelProto, onnx.ModelProto], Values]
"""(fp32 graph, the same with pairs) -> better values for the latter."""


@dataclass(frozen=True)
class Tuning:
    """What a training in int8 took. `accuracy_before`: mean score of the graph as calibration alone leaves it, on the
    images evaluated, all layers in int8 that may be."""

    epochs: int
    seconds: float
    accuracy_before: float


@dataclass
class _Graph:
    model: onnx.ModelProto
    makers: dict[str, onnx.NodeProto] = field(init=False)
    constants: dict[str, TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        self.makers = {name: node for node in self.model.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def dequantised(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that makes this value."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None


def pairs_of(full: onnx.ModelProto, low: onnx.ModelProto) -> list[Pair]:
    """The pairs of `low`, which was made of `full`, in the order of its nodes. A bias in int32 is no pair: it is as
    exact as in fp32."""
    inputs = {node.name: list(node.input) for node in full.graph.node}
    own, pairs = _Graph(low), list[Pair]()
    for node in low.graph.node:
        for index, name in enumerate(node.input):
            dequantise = own.dequantised(name)
            if dequantise is None or node.op_type == "QuantizeLinear":
                continue
            value, levels = inputs[node.name][index], own.constants.get(dequantise.input[0])
            if levels is None:
                zero = numpy_helper.to_array(own.constants[dequantise.input[2]])
                ends = np.iinfo(zero.dtype)
                limits = int(zero), int(ends.min), int(ends.max)
                pairs.append(Pair(node.name, index, value, dequantise.input[1], *limits))
            elif levels.data_type != TensorProto.INT32:
                pairs.append(_of_weight(node.name, index, value, dequantise, levels, own))
    return pairs


def _of_weight(node: str, index: int, value: str, dequantise: onnx.NodeProto, levels: TensorProto, own: _Graph) -> Pair:
    scale = own.constants[dequantise.input[1]]
    axis = next((a.i for a in dequantise.attribute if a.name == "axis"), 1)
    axis = axis % len(levels.dims) if scale.dims else None
    limits = 0, -WEIGHT_LEVELS, WEIGHT_LEVELS
    return Pair(node, index, value, scale.name, *limits, axis, levels.name)


def with_constants(model: onnx.ModelProto, values: Values) -> onnx.ModelProto:
    """A copy of an fp32 graph that holds other weights and biases."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values.constants:
            _store(tensor, values.constants[tensor.name])
    return result


def with_values(full: onnx.ModelProto, low: onnx.ModelProto, values: Values) -> onnx.ModelProto:
    """A copy of `low`, the graph with pairs of `full`, that holds these weights and scales; a scale that `values` does
    not name stays."""
    result = with_constants(low, values)
    own = _Graph(result)
    for name, scale in values.scales.items():
        if name in own.constants:
            _store(own.constants[name], scale)
    for pair in pairs_of(full, result):
        if pair.levels is not None and pair.value in values.constants:
            scale = numpy_helper.to_array(own.constants[pair.scale])
            _store(own.constants[pair.levels], levels_of(values.constants[pair.value], scale, pair))
    _biases(full, own, values)
    return result


def levels_of(weight: graph.Array, scale: graph.Array, pair: Pair) -> graph.Array:
    """The whole numbers that stand for a weight."""
    if pair.axis is not None:
        scale = scale.reshape([-1 if axis == pair.axis else 1 for axis in range(weight.ndim)])
    return np.asarray(np.clip(np.rint(weight / scale), pair.low, pair.high))


def _biases(full: onnx.ModelProto, own: _Graph, values: Values) -> None:
    """Biases in int32 have the scale of their layer's products: input times weight."""
    inputs = {node.name: list(node.input) for node in full.graph.node}
    for node in own.model.graph.node:
        bias = own.dequantised(node.input[2]) if len(node.input) > 2 else None
        if bias is None or own.constants[bias.input[0]].data_type != TensorProto.INT32:
            continue
        factors = [own.dequantised(node.input[index]) for index in (0, 1)]
        arrays = [numpy_helper.to_array(own.constants[one.input[1]]) for one in factors if one is not None]
        value = values.constants.get(inputs[node.name][2])
        if len(arrays) < 2 or value is None:
            continue
        scale = np.asarray(arrays[0] * arrays[1], np.float32)
        _store(own.constants[bias.input[1]], scale)
        ends = np.iinfo(np.int32)
        _store(own.constants[bias.input[0]], np.clip(np.rint(value / scale), ends.min, ends.max))


def _store(tensor: TensorProto, values: graph.Array) -> None:
    """Put values of its shape into a constant, in its own type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    name, shape = tensor.name, tuple(tensor.dims)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, dtype).reshape(shape), name))
