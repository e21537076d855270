"""Which unit each entry of a parameter makes. A unit is one channel of a watched activation.

An entry makes a unit where what it changes arrives there channel by channel: through norms over positions, sums,
products, pooling, depthwise convolutions and whatever only moves channels. The way ends at a watched activation, and at
anything that mixes channels, among them norms over several channels: what arrives there is also read elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor, fx

from pipeline.surgery.channels.analysis import Analysis, Layer, Rule, leaves
from pipeline.surgery.channels.labels import Ids, Labels
from pipeline.surgery.channels.ledger import Flags
from pipeline.surgery.rules import elementwise, rule_for
from pipeline.surgery.rules import inputs as plain
from pipeline.surgery.rules import reduce as reductions
from pipeline.surgery.rules.layers import batch_norm as norms
from pipeline.surgery.rules.layers import convolution
from pipeline.surgery.rules.layers import layer_norm as statistics
from pipeline.surgery.rules.moves import index as indexing
from pipeline.surgery.rules.moves import permute as movement
from pipeline.surgery.rules.moves import pixel_pad as resizing
from pipeline.surgery.rules.moves import reshape as reshaping
from pipeline.surgery.rules.moves import split_concat as pieces
from pipeline.surgery.trace.tracer import OPAQUE

# Rules that let each channel through alone, under its id or a new one. Rules that are in neither table mix channels.
SINGLE: frozenset[Any] = frozenset((convolution.average, reductions.reduce, resizing.pad, resizing.pixel_unshuffle))
SINGLE_MODULES = frozenset(m.__name__ for m in (elementwise, norms, movement, reshaping, pieces))
# Rules that take channels and leave others unread, or read sizes alone; they freeze what they read under no id.
TAKING: frozenset[Any] = frozenset(
    (
        indexing.getitem, indexing.narrow, indexing.index_select, elementwise.selected,
        plain.placeholder, plain.get_attr, plain.number, plain.size, plain.factory, plain.attribute,
    )
)  # fmt: skip
NORM_MODULES = (norms.__name__, statistics.__name__)


class Units:
    """Of a traced network; holds ids and no values, so it stays true while the parameters change."""

    def __init__(self, structure: Analysis, axis: Mapping[str, int]) -> None:
        """`axis`: watched output -> its channel axis, in a network that `structure` has been through."""
        self._a, self._axis = structure, axis
        self._classes = structure.ledger.classes()
        self._layers = {layer.node: layer for layer in structure.layers}
        self._frozen: dict[str, list[Ids]] = defaultdict(list)
        for freeze in structure.ledger.freezes:
            self._frozen[freeze.where].append(freeze.ids)
        self._size = structure.ledger.size
        self._own: dict[str, Ids] = {}  # watched output -> ids of its units, which come after those of the ledger
        self._steps: list[tuple[Ids, Ids]] = []  # (ids out, ids in), 1-d, in the order of the graph
        self._elsewhere: list[Ids] = []  # also read by something that is no unit
        # Of each use of a parameter an id per entry, broadcastable to it; one such array for each axis with channels.
        self._uses: dict[str, list[tuple[Ids, ...]]] = defaultdict(list)
        for node in structure.traced.module.graph.nodes:
            self._enter(node)

    def gone(self, dead: Mapping[str, Tensor]) -> dict[str, Flags]:
        """Of each parameter that has any, by canonical name: True where an entry makes units and all of them are dead.

        `dead`: watched output -> bool (channels,). The flags broadcast to the parameter.
        """
        reaches, needed = np.zeros(self._size, bool), np.zeros(self._size, bool)
        for ids in self._elsewhere:
            needed[ids] = True
        for name, ids in self._own.items():
            mask = dead[name].cpu().numpy().astype(bool) if name in dead else np.zeros(len(ids), bool)
            reaches[ids], needed[ids] = mask, ~mask
        for outs, ins in reversed(self._steps):  # ids may occur more than once
            reaches[ins[reaches[outs]]] = True
            needed[ins[needed[outs]]] = True
        only = reaches & ~needed
        flags_of = {}
        for name, uses in self._uses.items():
            lines = [[line for ids in use if (line := only[ids]).any()] for use in uses]
            if all(lines):
                flags = reduce(np.logical_and, [reduce(np.logical_or, use) for use in lines])
                if flags.any():
                    flags_of[name] = flags
        return flags_of

    def _enter(self, node: fx.Node) -> None:
        a = self._a
        rule: Rule | None = None if OPAQUE in node.meta else rule_for(a, node)
        read, produced = leaves(a.value((node.args, node.kwargs))), leaves(a.env[node])
        if node.op == "get_attr" and any(leaves(a.env[user]) for user in node.users):  # and not of its size alone
            self._fetched(produced)
        if node.name in self._axis:
            self._unit(node, read)
        elif node in self._layers:
            self._layer(node, self._layers[node])
        elif rule is not None and rule.__module__ == statistics.__name__:
            self._statistics(read, produced)
        elif rule is resizing.pixel_shuffle and produced[0].fields:
            self._spread(read[0], produced[0].fields[0].ids)
        elif rule in TAKING:
            entered = np.concatenate([np.empty(0, np.int64), *(x.all_ids() for x in read)])
            self._elsewhere += [ids[np.isin(ids, entered)] for ids in self._frozen[node.name]]
        elif rule is not None and (rule in SINGLE or rule.__module__ in SINGLE_MODULES):
            self._single(read, produced)
        else:
            self._elsewhere += [x.all_ids() for x in read]
        if node.op == "call_module" and node not in self._layers:
            self._parameters(node, rule, produced)

    def _fetched(self, produced: list[Labels]) -> None:
        """A parameter read by its name has ids of its own."""
        for x in produced:
            if x.parameter is not None:
                rank = len(x.shape)
                single = [f for f in x.fields if len(f.axes) == 1]
                self._uses[x.parameter].append(tuple(_on_axis(f.ids, f.axes[0], rank) for f in single))

    def _unit(self, node: fx.Node, read: list[Labels]) -> None:
        axis = self._axis[node.name]
        units = np.arange(self._size, self._size + self._a.env[node].shape[axis])
        self._own[node.name] = units
        self._size += len(units)
        for f in (f for x in read for f in x.fields):
            if f.axes == (axis,) and f.ids.shape == units.shape:
                self._steps.append((units, f.ids))
            else:
                self._elsewhere.append(f.ids.ravel())

    def _layer(self, node: fx.Node, layer: Layer) -> None:
        """Rows of a linear layer or a convolution make its outputs; what enters is mixed, unless it is depthwise."""
        a, out = self._a, layer.ids
        arguments = a.call(node, "input", "weight", "bias")
        weight = a.tensor(layer.weight)
        if weight.dim() > 2 and weight.shape[1] == 1 and layer.axis == 0:
            self._spread(arguments["input"], out)
        else:
            self._elsewhere.append(arguments["input"].all_ids())
        for name, axis in (("weight", layer.axis), ("bias", 0)):
            operand = arguments.get(name)
            for f in operand.fields if isinstance(operand, Labels) else ():
                if f.axes == (axis,) and f.ids.shape == out.shape:
                    self._steps.append((out, f.ids))
                else:
                    self._elsewhere.append(f.ids.ravel())
        if node.op != "call_module":
            return
        if layer.axis == 0:
            self._used(layer.weight, _on_axis(out, 0, weight.dim()))
        else:  # (in, out / groups, *kernel)
            rows = out.reshape(-1, weight.shape[1])
            every = np.repeat(rows, len(weight) // len(rows), 0)
            self._used(layer.weight, every.reshape(*every.shape, *[1] * (weight.dim() - 2)))
        if a.module(node).bias is not None:
            self._used(f"{node.target}.bias", out)

    def _statistics(self, read: list[Labels], produced: list[Labels]) -> None:
        """A norm over several channels mixes what it normalises; its scales and shifts act on each alone."""
        out = [f.ids for x in produced for f in x.fields]
        for x in read:
            for f in x.fields:
                if x.parameter is not None and len(out) == 1 and f.ids.shape == out[0].shape:
                    self._steps.append((out[0].ravel(), f.ids.ravel()))
                else:
                    self._elsewhere.append(f.ids.ravel())

    def _single(self, read: list[Labels], produced: list[Labels]) -> None:
        """A channel keeps its id, or gets a new one in its place of a field that is cut like the one that it enters."""
        fields = [f.ids for x in produced for f in x.fields]
        passing = np.concatenate([np.empty(0, np.int64), *(ids.ravel() for ids in fields)])
        for ids in (f.ids for x in read for f in x.fields):
            rest = ids[~np.isin(ids, passing)]
            if not rest.size:
                continue
            twins = [out for out in fields if self._tied(ids, out)]
            if rest.size == ids.size and len(twins) == 1:
                self._steps.append((twins[0].ravel(), ids.ravel()))
            else:
                self._elsewhere.append(rest)

    def _tied(self, ids: Ids, other: Ids) -> bool:
        return ids.shape == other.shape and np.array_equal(self._classes[ids], self._classes[other])

    def _spread(self, x: Labels, outs: Ids) -> None:
        """Each channel on axis 1 becomes several in a row, or several become one."""
        for f in x.fields:
            if f.axes == (1,):
                count = max(len(f.ids), len(outs))
                self._steps.append((np.repeat(outs, count // len(outs)), np.repeat(f.ids, count // len(f.ids))))
            else:
                self._elsewhere.append(f.ids.ravel())

    def _parameters(self, node: fx.Node, rule: Rule | None, produced: list[Labels]) -> None:
        """Those of a norm or of slopes, one for each channel; any other entry makes nothing that is known."""
        ids = self._own.get(node.name)
        if ids is None and rule is not None and rule.__module__ in NORM_MODULES:
            ids = next((f.ids for x in produced for f in x.fields), None)
        for name, parameter in self._a.module(node).named_parameters():
            if ids is not None and parameter.shape == ids.shape:
                self._used(f"{node.target}.{name}", ids)
            else:
                self._uses[self._a.canonical(f"{node.target}.{name}")].append(())

    def _used(self, parameter: str, ids: Ids) -> None:
        self._uses[self._a.canonical(parameter)].append((ids,))


def _on_axis(ids: Ids, axis: int, rank: int) -> Ids:
    return ids.reshape([-1 if ax == axis else 1 for ax in range(rank)])
