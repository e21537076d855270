"""Carry a decision through the graph: what every tensor, parameter and call looks like with channels gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.surgery.channels.analysis import UNEXPECTED, Analysis, leaves
from pipeline.surgery.channels.labels import Ids, Labels, LayoutError
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.surgery.trace.sizes import counts_images
from pipeline.surgery.trace.tracer import first_line


@dataclass(frozen=True)
class Merged:
    """Constants that entered a layer with zero padding, in one channel. `kernel` (float64): what they contributed,
    of the shape of one input of the weight that stays, over `value`, what that channel holds."""

    node: fx.Node
    axis: int
    """Of the weight: its inputs."""
    kernel: Tensor
    into: int | None
    """Which of the inputs that stay takes them up; None where a channel of ones is added behind all."""
    constants: int
    """How many there were."""


class Cut:
    """`keep[id]` says which channels stay. After `run`, `slices`, `grouped`, `folds`, `merged` and `calls` say what
    changes."""

    def __init__(self, analysis: Analysis, keep: Flags) -> None:
        self.analysis, self.keep = analysis, keep
        self.env: dict[fx.Node, Any] = {}
        self.slices: dict[tuple[str, int], Ids] = {}
        self.grouped: dict[str, tuple[Ids, Ids]] = {}
        self.groups: dict[fx.Node, int] = {}
        self.folds: dict[str, tuple[fx.Node, str | None, Floats]] = {}
        self.merged: dict[str, Merged] = {}
        self.calls: dict[fx.Node, tuple[Any, tuple[Any, ...], Mapping[str, Any]]] = {}
        self.numbers: dict[fx.Node, set[fx.Node]] = {}

    def run(self) -> Cut:
        """Visit every node; LayoutError names channels that cannot go after all."""
        for node in self.analysis.traced.module.graph.nodes:
            self.env[node] = self._recast(node)
            self._settle(node)
        return self

    def _recast(self, node: fx.Node) -> Any:
        """The node's own recast; the channels at a node that it cannot do without some of must all stay."""
        try:
            return self.analysis.recasts[node](self)
        except torch.OutOfMemoryError:
            raise
        except LayoutError as error:
            error.at_node = self._around(node)
            raise
        except UNEXPECTED as error:
            ids = self._around(node)
            if self.keep[ids].all():
                raise
            raise LayoutError(f"{node.name} cannot be cut ({first_line(error)})", ids) from error

    def _around(self, node: fx.Node) -> Ids:
        """The channels of what a call reads and makes."""
        collected = leaves(self.analysis.value((node.args, node.kwargs, node)))
        return np.concatenate([np.empty(0, np.int64), *(x.all_ids() for x in collected)])

    def value(self, x: Any) -> Any:
        """What an argument is after the cut."""
        return fx.node.map_aggregate(x, lambda n: self.env[n] if isinstance(n, fx.Node) else n)

    def remaining(self, ids: Ids) -> Ids:
        """Indices of the ids (1-d) that stay."""
        staying = np.flatnonzero(self.keep[ids])
        if not len(staying):
            raise LayoutError("no channel would be left", ids)
        return staying

    def slice(self, parameter: str, axis: int, index: Ids, ids: Ids) -> None:
        """Entries `index` of `axis` stay; every user of a parameter must ask for the same."""
        key = (self.analysis.canonical(parameter), axis)
        earlier = self.slices.setdefault(key, index)
        if earlier is not index and not np.array_equal(earlier, index):
            raise LayoutError("two users of a parameter keep different channels", ids)

    def regroup(self, parameter: str, rows: Ids, columns: Ids) -> None:
        """A grouped weight: of each group that stays, a row each, the entries of both axes that stay."""
        self.grouped[self.analysis.canonical(parameter)] = (rows, columns)

    def set_groups(self, node: fx.Node, groups: int) -> None:
        """A depthwise convolution has as many groups as channels."""
        self.groups[node] = groups

    def fold(self, node: fx.Node, weight: str, bias: str | None, delta: Floats) -> None:
        """Add `delta` (kept outputs,) to the bias of the layer that `node` calls."""
        self.folds[weight] = (node, bias, delta)

    def merge(self, node: fx.Node, weight: str, axis: int, kernel: Tensor, into: int | None, constants: int) -> None:
        """Enter `Merged` for the weight of the layer that `node` calls."""
        self.merged[weight] = Merged(node, axis, kernel, into, constants)

    def rewrite(
        self, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Call the function `target` instead; args refer to nodes of the graph before the cut."""
        self.calls[node] = (target, args, kwargs or {})

    def freeze_numbers(self, node: fx.Node) -> None:
        """Numbers that the code computes from widths keep the values they had (a scale of 1 / sqrt(width), say).

        One that depends on the number of images too has no value to keep: LayoutError names the channels counted.
        """
        changed = set()
        for n in node.all_input_nodes:
            val = n.meta.get("val")
            if isinstance(val, int | float | torch.Size | tuple) and not _same(self.env[n], self.analysis.env[n]):
                changed.add(n)
                if counts_images(n):
                    raise LayoutError(f"{n.name} is computed from widths and the number of images", self.widths(n))
        if changed:
            self.numbers[node] = changed

    def widths(self, node: fx.Node) -> Ids:
        """The channels of the tensors whose sizes a number comes from."""
        collected, todo = [], list(node.all_input_nodes)
        while todo:
            n = todo.pop()
            labels = leaves(self.analysis.env[n])
            collected += [x.all_ids() for x in labels]
            todo += [] if labels else n.all_input_nodes
        return np.concatenate(collected) if collected else np.empty(0, np.int64)

    def attribute(self, name: str | None) -> fx.Node | str | None:
        """A stand-in for a parameter in rewritten arguments; resolved when the graph is rebuilt."""
        return None if name is None else f"parameter:{name}"

    def call(self, target: Any, args: tuple[Any, ...]) -> tuple[str, Any, tuple[Any, ...]]:
        """A stand-in for a call of its own in rewritten arguments."""
        return ("call:", target, args)

    def size(self, source: Any, axis: int) -> tuple[str, Any, int]:
        """A stand-in for `source.size(axis)` in rewritten arguments."""
        return ("size:", source, axis)

    def _settle(self, node: fx.Node) -> None:
        """After a node's own recast: literal sizes that its arguments got from widths."""
        value = self.env[node]
        if isinstance(value, Labels):
            for f in value.fields:
                if f.ids.size and not self.keep[f.ids].all():
                    raise LayoutError("a removed channel is still there", f.ids[~self.keep[f.ids]])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, Labels) or isinstance(b, Labels):
        return True
    return bool(a == b)


def cut_mask(cut: Cut, name: str, parameter: Tensor) -> Tensor | None:
    """1 for the entries of a parameter that stay, 0 for those that go, broadcastable to it; None where all stay."""
    mask: Tensor | None = None
    for axis in range(parameter.dim()):
        index = cut.slices.get((name, axis))
        if index is None or len(index) == parameter.shape[axis]:
            continue
        shape = [1] * parameter.dim()
        shape[axis] = -1
        line = torch.zeros(parameter.shape[axis], device=parameter.device, dtype=parameter.dtype)
        line[torch.as_tensor(index, device=parameter.device)] = 1
        mask = line.reshape(shape) if mask is None else mask * line.reshape(shape)
    if name in cut.grouped:
        mask = _grouped_mask(parameter, *cut.grouped[name])
    return mask


def _grouped_mask(weight: Tensor, rows: Ids, columns: Ids) -> Tensor:
    mask = torch.zeros_like(weight)
    for first, second in zip(rows, columns, strict=True):
        mask[torch.as_tensor(first)[:, None], torch.as_tensor(second)] = 1
    return mask
