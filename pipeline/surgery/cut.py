"""Carry a decision through the graph: what every tensor, parameter and call looks like with channels gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.surgery.analysis import UNEXPECTED, Analysis, leaves
from pipeline.surgery.labels import Ids, Labels, LayoutError
from pipeline.surgery.ledger import Flags, Floats
from pipeline.surgery.sizes import counts_images
from pipeline.surgery.tracer import first_line


class Cut:
    """`keep[id]` says which channels stay. After `run`, `slices`, `grouped`, `folds` and `calls` say what changes."""

    def __init__(self, analysis: Analysis, keep: Flags) -> None:
        self.analysis, self.keep = analysis, keep
        self.env: dict[fx.Node, Any] = {}
        self.slices: dict[tuple[str, int], Ids] = {}
        self.grouped: dict[str, tuple[int, Ids, Ids]] = {}
        self.groups: dict[fx.Node, int] = {}
        self.folds: dict[str, tuple[fx.Node, str | None, Floats]] = {}
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
        except UNEXPECTED as error:
            found = leaves(self.analysis.value((node.args, node.kwargs, node)))
            ids = np.concatenate([np.empty(0, np.int64), *(x.all_ids() for x in found)])
            if self.keep[ids].all():
                raise
            raise LayoutError(f"{node.name} cannot be cut ({first_line(error)})", ids) from error

    def value(self, x: Any) -> Any:
        """What an argument is after the cut."""
        return fx.node.map_aggregate(x, lambda n: self.env[n] if isinstance(n, fx.Node) else n)

    def kept(self, ids: Ids) -> Ids:
        """Indices of the ids (1-d) that stay."""
        left = np.flatnonzero(self.keep[ids])
        if not len(left):
            raise LayoutError("no channel would be left", ids)
        return left

    def slice(self, parameter: str, axis: int, index: Ids, ids: Ids) -> None:
        """Entries `index` of `axis` stay; every user of a parameter must ask for the same."""
        key = (self.analysis.canonical(parameter), axis)
        known = self.slices.setdefault(key, index)
        if known is not index and not np.array_equal(known, index):
            raise LayoutError("two users of a parameter keep different channels", ids)

    def regroup(self, parameter: str, out_axis: int, outs: Ids, ins: Ids) -> None:
        """A grouped weight: per group (rows) the outputs and inputs that stay, counted within the group."""
        self.grouped[self.analysis.canonical(parameter)] = (out_axis, outs, ins)

    def set_groups(self, node: fx.Node, groups: int) -> None:
        """A depthwise convolution has as many groups as channels."""
        self.groups[node] = groups

    def fold(self, node: fx.Node, weight: str, bias: str | None, delta: Floats) -> None:
        """Add `delta` (kept outputs,) to the bias of the layer that `node` calls."""
        self.folds[weight] = (node, bias, delta)

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
        found, todo = [], list(node.all_input_nodes)
        while todo:
            n = todo.pop()
            labels = leaves(self.analysis.env[n])
            found += [x.all_ids() for x in labels]
            todo += [] if labels else n.all_input_nodes
        return np.concatenate(found) if found else np.empty(0, np.int64)

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
        made = self.env[node]
        if isinstance(made, Labels):
            for f in made.fields:
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


def _grouped_mask(weight: Tensor, out_axis: int, outs: Ids, ins: Ids) -> Tensor:
    mask = torch.zeros_like(weight)
    for block, o, i in zip(mask.chunk(len(outs), 0), outs, ins, strict=True):
        first, second = (o, i) if out_axis == 0 else (i, o)
        block[torch.as_tensor(first)[:, None], torch.as_tensor(second)] = 1
    return mask
