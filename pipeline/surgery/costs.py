"""What channels cost: the multiply-accumulates of the network as a function of which channels stay.

A convolution or linear layer costs (outputs kept) x (inputs kept) / groups x (kernel x output positions); a class of
channels that live and go together is output of some layers and input of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor, nn

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.labels import Ids, Labels
from pipeline.surgery.ledger import Flags, Floats
from pipeline.surgery.select import Group, groups_of


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
        return sum(x.each * _kept(keep, x.outs) * _kept(keep, x.ins) for x in self.layers)

    def of_each(self, keep: Flags) -> Floats:
        """(count,): multiply-accumulates saved if that class alone went from the classes `keep`."""
        saved = np.zeros(self.count)
        for x in self.layers:
            outs, ins = _kept(keep, x.outs), _kept(keep, x.ins)
            np.add.at(saved, x.outs[keep[x.outs]], x.each * ins)
            with_class = x.ins[x.ins >= 0]
            np.add.at(saved, with_class[keep[with_class]], x.each * outs)
        return saved


def _kept(keep: Flags, classes: Ids) -> int:
    return int(keep[classes[classes >= 0]].sum()) + int((classes < 0).sum())


def costs_of(analysis: Analysis) -> Costs:
    """The costs of the network as it is, with the classes of `analysis.ledger`."""
    classes = analysis.ledger.classes()
    count = int(classes.max()) + 1 if len(classes) else 0
    fixed = np.zeros(count, bool)
    for freeze in analysis.ledger.freezes:
        fixed[classes[freeze.ids]] = True
    groups = tuple(g for g in groups_of(analysis, classes) if not fixed[g.classes].any())
    members = np.zeros(count, np.int64)
    for layer in analysis.layers:
        np.add.at(members, classes[layer.ids], 1)
    members[fixed] = 0
    return Costs(count, tuple(_layers(analysis, classes)), groups, fixed, members, _scales(analysis, classes))


def _layers(analysis: Analysis, classes: Ids) -> list[LayerCost]:
    made = []
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
        made.append(LayerCost(outs, ins, each_output / len(ins)))
    return made


def _scales(analysis: Analysis, classes: Ids) -> dict[str, Ids]:
    found = {}
    for name, module in analysis.traced.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.weight, Tensor):
            key = analysis.canonical(f"{name}.weight")
            if (key, 0) in analysis.axes:
                found[key] = classes[analysis.axes[key, 0]]
    return found
