"""Changes to an ONNX graph: inputs, attributes, weights, nodes put in; then what nobody reads goes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.models.onnx.convert import Array


class HeldError(Exception):
    """The graph cannot say what became of node `index`; its channels have to stay."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index, self.reason = index, reason


class Edit:
    """`nodes` are those of a copy of the model, under their old indices."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy.deepcopy(model)
        self.nodes = list(self.model.graph.node)
        self._arrays: dict[str, Array] = {}
        self._after: dict[int, list[onnx.NodeProto]] = {}
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._instead: dict[int, list[onnx.NodeProto]] = {}
        self._names = {n for node in self.nodes for n in (*node.input, *node.output, node.name)}
        self._names |= {t.name for t in self.model.graph.initializer}

    def fresh(self, stem: str) -> str:
        """A name that nothing in the graph has."""
        name = f"{stem}_compact"
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def new(self, stem: str, array: Array) -> str:
        """A new weight."""
        name = self.fresh(stem)
        self._arrays[name] = array
        return name

    def dtype_of(self, weight: str) -> Any:
        """Of a weight by its name."""
        tensor = next(t for t in self.model.graph.initializer if t.name == weight)
        return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)

    def attribute(self, index: int, name: str, default: Any) -> Any:
        matches = [a for a in self.nodes[index].attribute if a.name == name]
        return onnx.helper.get_attribute_value(matches[0]) if matches else default

    def set_attribute(self, index: int, name: str, value: Any) -> None:
        self.drop_attributes(index, name)
        self.nodes[index].attribute.append(onnx.helper.make_attribute(name, value))

    def drop_attributes(self, index: int, *names: str) -> None:
        others = [a for a in self.nodes[index].attribute if a.name not in names]
        del self.nodes[index].attribute[:]
        self.nodes[index].attribute.extend(others)

    def set_input(self, index: int, slot: int, name: str) -> None:
        node = self.nodes[index]
        while len(node.input) <= slot:
            node.input.append("")
        node.input[slot] = name

    def set_inputs(self, index: int, names: list[str]) -> None:
        del self.nodes[index].input[:]
        self.nodes[index].input.extend(names)

    def then(self, index: int, op: str, array: Array) -> None:
        """Put `op` with a constant behind the node: its result takes the node's name."""
        node = self.nodes[index]
        name = node.output[0]
        inner = self.fresh(name)
        node.output[0] = inner
        following = onnx.helper.make_node(
            op, [inner, self.new(f"{name}_{op}", array)], [name], self.fresh(f"{node.name}_{op}")
        )
        self._after.setdefault(index, []).insert(0, following)

    def first(self, index: int, node: onnx.NodeProto) -> None:
        """Put a node in front of another."""
        self._before.setdefault(index, []).append(node)

    def instead(self, index: int, nodes: list[onnx.NodeProto]) -> None:
        self._instead[index] = nodes

    def add_bias(self, index: int, array: Array) -> None:
        """A bias for a layer that had none."""
        node = self.nodes[index]
        if node.op_type == "MatMul":
            self.then(index, "Add", array)
            return
        self.drop_attributes(index, "beta")
        self.set_input(index, 2, self.new(node.input[1], array))

    def replace(self, value: str, versions: list[tuple[set[int], Array]]) -> None:
        """Give the nodes of each version of a weight that array; one for all readers keeps the weight's name."""
        everybody = {i for i, node in enumerate(self.nodes) if value in node.input}
        first = versions[0][1]
        same = all(v.shape == first.shape and v.tobytes() == first.tobytes() for _, v in versions)
        if same and everybody <= set().union(*(nodes for nodes, _ in versions)):
            self._arrays[value] = first
            return
        for nodes, array in versions:
            name = self.new(value, array)
            for index in nodes:
                for slot, source in enumerate(self.nodes[index].input):
                    if source == value:
                        self.nodes[index].input[slot] = name

    def finished(self) -> onnx.ModelProto:
        """The model with all changes, valid and without what nothing reads."""
        graph = self.model.graph
        nodes = []
        for index, node in enumerate(self.nodes):
            nodes += self._before.get(index, []) + self._instead.get(index, [node]) + self._after.get(index, [])
        nodes = [n for n in nodes if not any(name in self._arrays for name in n.output)]
        nodes = _read(nodes, {o.name for o in graph.output})
        order = copy.deepcopy(nodes)
        del graph.node[:]
        graph.node.extend(order)
        self._put_weights(graph)
        del graph.value_info[:]  # shapes of tensors inside, which a reader infers
        onnx.checker.check_model(self.model)
        return self.model

    def _put_weights(self, graph: onnx.GraphProto) -> None:
        needed = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
        tensors = {t.name: t for t in graph.initializer}
        for name, array in self._arrays.items():
            tensors[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        listed = {v.name for v in graph.input}
        weights = [copy.deepcopy(t) for name, t in tensors.items() if name in needed]
        before = {t.name for t in graph.initializer}
        del graph.initializer[:]
        graph.initializer.extend(weights)
        inputs = [copy.deepcopy(v) for v in graph.input if v.name not in before or v.name in needed]
        for value in inputs:  # files of old list their weights among the inputs
            if value.name in self._arrays and value.name in listed:
                shape = self._arrays[value.name].shape
                value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape))
        del graph.input[:]
        graph.input.extend(inputs)


def _read(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes whose results are read, in order."""
    needed, read = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            read.append(node)
            needed |= set(node.input)
    return read[::-1]
