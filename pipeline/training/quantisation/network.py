"""An int8 graph as a torch network that can be trained, and what it has learned as constants of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from export.onnx.graph import Array, read_graph
from export.precision.pairs import Pair, Values, pairs_of
from pipeline.models.onnx import Network, network_from_model
from pipeline.models.onnx.convert import SOURCE, Parameter
from pipeline.models.onnx.functions import Reference
from pipeline.tasks import Task
from pipeline.training.quantisation.rounding import RoundedLayer, Rounding
from runtime.errors import UserError

LEAVE_OUT = "leave precision.qat out: calibration alone needs no gradient"


class QuantisedNetwork(nn.Module):
    """Computes what the int8 graph `low` computes, which was made of `full`; weights, biases and scales are trained.

    Batch norms that are no part of a convolution keep their statistics. UserError where the graph cannot be followed,
    or has no gradient.
    """

    def __init__(self, full: onnx.ModelProto, low: onnx.ModelProto, source: Path) -> None:
        super().__init__()
        self._network = followed(full, source)
        self.body = self._network.module
        self._index = {node.name: index for index, node in enumerate(full.graph.node)}
        self._scales = {tensor.name: tensor for tensor in low.graph.initializer}
        self._roundings: dict[str, Rounding] = {}
        self._trained: list[tuple[Parameter, Tensor]] = []
        """Constants of the fp32 graph, each with the parameter that holds it."""
        for name, constant in self._network.parameters.items():
            if "." in name:
                self._train(constant, self.body.get_parameter(name) if _is_parameter(self.body, name) else None)
        for pair in pairs_of(full, low):
            self._round_weight(pair) if pair.levels is not None else self._round_edge(pair, pair.value)
        del self._network  # its nodes hang together in a chain, too deep for a copy of this network
        self.body.graph.lint()
        self.body.recompile()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.body(x)
        return outputs

    def train(self, mode: bool = True) -> QuantisedNetwork:
        """The network's own layers stay as they infer."""
        super().train(mode)
        self.body.eval()
        return self

    def values(self) -> Values:
        """What the network holds now, under the names of the graphs."""
        constants = {
            one.value: _array(tensor).T if one.layout == "transposed" else _array(tensor)
            for one, tensor in self._trained
        }
        return Values(constants, {name: _array(rounding.scale) for name, rounding in self._roundings.items()})

    def _train(self, constant: Parameter, tensor: nn.Parameter | None) -> None:
        if tensor is None or any(tensor is other for _, other in self._trained):
            return
        if any(constant.value == other.value for other, _ in self._trained):
            problem = f"{constant.value} is the weight of two layers, one of which transposes it"
            raise UserError(problem, "a weight that lies alike in all that read it", LEAVE_OUT)
        self._trained.append((constant, tensor.requires_grad_()))

    def _rounding(self, pair: Pair, axis: int | None) -> Rounding:
        """One for each scale: where values only pass through, pairs share it."""
        if pair.scale not in self._roundings:
            scale = torch.from_numpy(np.array(numpy_helper.to_array(self._scales[pair.scale]), np.float32))
            self._roundings[pair.scale] = Rounding(scale, pair.zero_point, pair.low, pair.high, axis)
        return self._roundings[pair.scale]

    def _round_weight(self, pair: Pair) -> None:
        """Of a layer, or a constant that a function reads."""
        own = f"n{self._index[pair.node]}_"
        for name, constant in self._network.parameters.items():
            if constant.value != pair.value:
                continue
            owner, _, role = name.rpartition(".")
            if owner.startswith(own) and role == "weight":
                axis = 1 - pair.axis if constant.layout == "transposed" and pair.axis is not None else pair.axis
                rounded = RoundedLayer(self.body.get_submodule(owner), self._rounding(pair, axis))
                setattr(self.body, owner, rounded)
                return
            if not owner:
                self._train(constant, self.body.get_parameter(name) if _is_parameter(self.body, name) else None)
                self._round_edge(pair, name)
                return
        raise AssertionError(pair)

    def _round_edge(self, pair: Pair, value: str) -> None:
        """Between a value of the graph, or a parameter of that name, and the calls that stand for the node."""
        graph, source = self.body.graph, self._network.nodes.get(value)
        if source is None:
            source = next(node for node in graph.nodes if node.op == "get_attr" and node.target == value)
        rounding = self._rounding(pair, pair.axis)
        name = f"pair_{list(self._roundings).index(pair.scale)}"
        if not hasattr(self.body, name):
            self.body.add_module(name, rounding)
        index = self._index[pair.node]
        readers = [node for node in source.users if node.meta.get(SOURCE) == index]
        rounded = next((user for user in source.users if user.target == name), None)
        if rounded is None:
            with graph.inserting_after(source):
                rounded = graph.call_module(name, (source,))
        for reader in readers:
            reader.replace_input_with(source, rounded)


def demand_trainable(path: Path, name: str, task: Task) -> None:
    """UserError where the file of the network `name` cannot be trained in int8 for the task."""
    if task.named is not None:
        problem = f"precision.qat, and the outputs of a task judged by {task.metric} are not what it learns by"
        raise UserError(problem, "a task that takes the network's answer as it is", LEAVE_OUT)
    followed(read_graph(path), Path(name))


def followed(full: onnx.ModelProto, source: Path) -> Network:
    """An fp32 graph as a torch network. UserError where it cannot be, has not one output, or has no gradient."""
    try:
        network = network_from_model(full, source)
    except UserError as error:
        raise UserError(f"{source.name} cannot be trained in int8: {error.found}", error.expected, LEAVE_OUT) from error
    if len(full.graph.output) != 1:
        problem = f"{source.name} cannot be trained in int8: it has {len(full.graph.output)} outputs"
        raise UserError(problem, "one", LEAVE_OUT)
    for node in network.module.graph.nodes:
        if isinstance(node.target, Reference):
            name = full.graph.node[node.meta[SOURCE]].name
            problem = f"{source.name} cannot be trained in int8: no gradient passes {name}, a {node.target.__name__}"
            raise UserError(problem, "operators that torch has", LEAVE_OUT)
    return network


def _is_parameter(body: fx.GraphModule, name: str) -> bool:
    owner, _, role = name.rpartition(".")
    return role in body.get_submodule(owner)._parameters


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy())
