"""What channels cost: the multiply-accumulates of the network as a function of which channels stay.

A convolution or linear layer costs (outputs kept) x (inputs kept) / groups x (kernel x output positions); a class of
channels that live and go together is output of some layers and input of others. The two products of attention cost a
number for each channel of the queries and of the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor, nn

from pipeline.surgery.channels.analysis import Analysis, describe, leaves
from pipeline.surgery.channels.groups import Group, groups_of, with_rows
from pipeline.surgery.channels.labels import Ids, Labels
from pipeline.surgery.channels.ledger import Flags, Floats


@dataclass(frozen=True)
class LayerCost:
    """`outs` (O,) and `ins` (I,) are classes, -1 where an input has none; `each` multiply-accumulates per pair."""

    outs: Ids
    ins: Ids
    each: float


@dataclass(frozen=True)
class Costs:
    """Of a traced network; `count` classes, `groups` of those that can go."""

    count: int
    layers: tuple[LayerCost, ...]
    groups: tuple[Group, ...]
    fixed: Flags
    """(count,): classes that cannot go, such as the network's outputs."""
    members: Ids
    """(count,): output channels of layers in each class, 0 where it cannot go."""
    scales: dict[str, Ids]
    """Name of each batch norm's scale -> the classes of its channels."""

    def macs(self, keep: Flags) -> float:
        """Of one image with the classes `keep` (count,) alone."""
        return sum(x.each * _remaining(keep, x.outs) * _remaining(keep, x.ins) for x in self.layers)

    def of_each(self, keep: Flags) -> Floats:
        """(count,): multiply-accumulates saved if that class alone went from the classes `keep`."""
        saved = np.zeros(self.count)
        for x in self.layers:
            outs, ins = _remaining(keep, x.outs), _remaining(keep, x.ins)
            np.add.at(saved, x.outs[keep[x.outs]], x.each * ins)
            with_class = x.ins[x.ins >= 0]
            np.add.at(saved, with_class[keep[with_class]], x.each * outs)
        return saved


def _remaining(keep: Flags, classes: Ids) -> int:
    return int(keep[classes[classes >= 0]].sum()) + int((classes < 0).sum())


def costs_of(analysis: Analysis) -> Costs:
    """The costs of the network as it is, with the classes of `analysis.ledger`."""
    classes = analysis.ledger.classes()
    count = int(classes.max()) + 1 if len(classes) else 0
    fixed = np.zeros(count, bool)
    for freeze in analysis.ledger.freezes:
        fixed[classes[freeze.ids]] = True
    free = [g for g in groups_of(analysis, classes) if not fixed[g.classes].any()]
    groups = tuple(with_rows(free, analysis, classes))
    members = np.zeros(count, np.int64)
    for layer in analysis.layers:
        np.add.at(members, classes[layer.ids], 1)
    members[fixed] = 0
    layers = (*_layers(analysis, classes), *_products(analysis, classes))
    return Costs(count, layers, groups, fixed, members, _scales(analysis, classes))


def _layers(analysis: Analysis, classes: Ids) -> list[LayerCost]:
    rows = []
    for layer in analysis.layers:
        weight = analysis.tensor(layer.weight)
        out, entering = layer.node.meta["val"], analysis.value(layer.node.args[0])
        field = None
        if isinstance(entering, Labels):
            field = entering.at(1 if weight.dim() > 2 else len(entering.shape) - 1)
        outs = classes[layer.ids]
        positions = prod(out.shape[2:]) if weight.dim() > 2 else prod(out.shape[1:-1])
        each_output = positions * prod(weight.shape[2:]) * (weight.shape[1] if layer.axis == 0 else len(outs))
        if layer.axis == 1:
            each_output = each_output * weight.shape[0] // len(outs)
        depthwise = weight.dim() > 2 and weight.shape[1] == 1
        ins = np.full(1, -1) if field is None or depthwise else classes[np.asarray(field.ids).ravel()]
        rows.append(LayerCost(outs, ins, each_output / len(ins)))
    return rows


def _products(analysis: Analysis, classes: Ids) -> list[LayerCost]:
    """Of matrix products and of scaled dot product attention: a number for each channel of one operand."""
    rows = []
    for node in analysis.traced.module.graph.nodes:
        name = describe(analysis, node) if node.op in ("call_function", "call_method") else ""
        if name not in ("matmul", "bmm", "scaled_dot_product_attention"):
            continue
        operands = leaves(analysis.value((node.args, dict(node.kwargs))))[:3]
        if name == "scaled_dot_product_attention":  # queries with keys, then scores with values
            keys = operands[1].shape[-2]
            pairs = [(operands[0], keys), (operands[2], operands[0].shape[-2])]
            rows += [(x, prod(x.shape) * n) for x, n in pairs]
        else:
            x, y = operands[:2]
            inner = x.at(len(x.shape) - 1) is not None
            rows.append((x if inner else y, prod(x.shape) * y.shape[-1]))
    images = len(analysis.traced.example_inputs[0])
    none = np.full(1, -1)
    fields = [(x.at(len(x.shape) - 1), total / images) for x, total in rows]
    return [LayerCost(classes[f.ids.ravel()], none, total / f.ids.size) for f, total in fields if f is not None]


def _scales(analysis: Analysis, classes: Ids) -> dict[str, Ids]:
    scales = {}
    for name, module in analysis.traced.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.weight, Tensor):
            key = analysis.canonical(f"{name}.weight")
            if (key, 0) in analysis.axes:
                scales[key] = classes[analysis.axes[key, 0]]
    return scales
