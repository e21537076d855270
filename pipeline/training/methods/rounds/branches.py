"""Where two branches of a network are added, and how much of the signal each channel of either carries
(arXiv 2109.10795, residual blocks)."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.surgery.trace import Traced

ADDITIONS = (operator.add, operator.iadd, torch.add)
METHODS = ("add", "add_")


@dataclass(frozen=True)
class Branch:
    """One side of an addition. `layer` and `norm`: paths of the layer that alone makes it, and of the normalisation
    between; None where it is made otherwise, as an identity is."""

    node: str
    layer: str | None
    norm: str | None


def additions(traced: Traced) -> list[tuple[Branch, Branch]]:
    """The pairs of tensors of one shape, of at least two axes, that the network adds; none where nothing was traced."""
    graph = () if traced.frozen else traced.module.graph.nodes
    pairs = []
    for node in graph:
        by_function = node.op == "call_function" and node.target in ADDITIONS
        if not (by_function or (node.op == "call_method" and node.target in METHODS)):
            continue
        sides = [side for side in node.args[:2] if isinstance(side, fx.Node)]
        shapes = {tuple(side.meta["val"].shape) for side in sides if isinstance(side.meta.get("val"), Tensor)}
        if len(sides) == 2 and sides[0] is not sides[1] and len(shapes) == 1 and len(shapes.pop()) > 1:
            pairs.append((_branch(traced, sides[0]), _branch(traced, sides[1])))
    return pairs


def _branch(traced: Traced, node: fx.Node) -> Branch:
    norm, at = None, node
    if isinstance(_module(traced, at), nn.modules.batchnorm._BatchNorm) and len(at.users) == 1:
        norm, at = str(at.target), at.all_input_nodes[0]
    makes = isinstance(_module(traced, at), nn.modules.conv._ConvNd) and len(at.users) == 1
    return Branch(node.name, str(at.target), norm) if makes else Branch(node.name, None, None)


def _module(traced: Traced, node: fx.Node) -> Any:
    return traced.module.get_submodule(str(node.target)) if node.op == "call_module" else None


@torch.no_grad()
def signals_of(traced: Traced, names: Iterable[str], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Name of a value -> mean of its size over the samples, (C, *positions); in eval mode."""
    modules = list(traced.module.modules())
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        adder = _Adder(traced.module, set(names))
        for inputs in batches:
            adder.run(*inputs)
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
    return {name: total / adder.counts[name] for name, total in adder.sums.items()}


class _Adder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self._names = names
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.name in self._names:
            self.sums[n.name] = self.sums.get(n.name, 0) + out.abs().sum(0)
            self.counts[n.name] = self.counts.get(n.name, 0) + len(out)
        return out


def weak_channels(one: Tensor, other: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mean maps (C, *positions) of the two sides -> bool (C,) of either: True where its norm is less than (1 - alpha) /
    alpha of the other's."""
    first, second = (side.flatten(1).norm(dim=1) if side.dim() > 1 else side for side in (one, other))
    limit = (1 - alpha) / alpha
    return first < limit * second, second < limit * first
