"""Operations that move elements without changing them: their rule is to move the ids the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from pipeline.surgery.channels import labels as lb
from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule
from pipeline.surgery.channels.labels import Field, Labels


def moved(a: Analysis, node: fx.Node, move: Callable[[Labels, Labels | None], Labels]) -> Result | None:
    """A movement without sizes among its arguments; `move(labels, like)` does it to labels."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    out = move(x, None)
    a.freeze(node, "a single channel is taken out", lb.lost(x, [out]))
    return out, lambda cut: move(cut.value(node.args[0]), out)


def moved_axes(a: Analysis, node: fx.Node, order: Sequence[int]) -> Result | None:
    rank = len(order)
    return moved(a, node, lambda x, like: lb.permute(x, [ax % rank for ax in order]))


def permute(a: Analysis, node: fx.Node) -> Result | None:
    arguments = a.value(node.args[1:]) or tuple(a.value(node.kwargs).values())
    order = arguments[0] if isinstance(arguments[0], list | tuple) else arguments
    return moved_axes(a, node, [int(d) for d in order])


def transpose(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    dims = {"dim0": 0, "dim1": 1, **a.value(node.kwargs)}
    i, j = a.value(node.args[1:]) if len(node.args) == 3 else (dims["dim0"], dims["dim1"])
    order = list(range(len(x.shape)))
    order[i], order[j] = order[j], order[i]
    return moved_axes(a, node, order)


def movedim(a: Analysis, node: fx.Node) -> Result | None:
    call = a.call(node, "input", "source", "destination")
    x, source, target = call["input"], call["source"], call["destination"]
    rank = len(x.shape)
    moved_from, moved_to = ([d % rank for d in ([v] if isinstance(v, int) else v)] for v in (source, target))
    order = [ax for ax in range(rank) if ax not in moved_from]
    for to, origin in sorted(zip(moved_to, moved_from, strict=True)):
        order.insert(to, origin)
    return moved_axes(a, node, order)


def transposed(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    return moved_axes(a, node, range(len(x.shape))[::-1]) if isinstance(x, Labels) and len(x.shape) == 2 else None


def squeeze(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    arguments = (*a.value(node.args[1:]), *a.value(node.kwargs).values())
    rank = len(x.shape)
    dims = [
        g % rank for g in (arguments[0] if arguments and isinstance(arguments[0], list | tuple) else arguments)
    ] or range(rank)
    gone = sorted((d for d in dims if x.shape[d] == 1), reverse=True)

    def move(x: Labels, like: Labels | None) -> Labels:
        for d in gone:
            x = lb.squeeze(x, d)
        return x

    return moved(a, node, move)


def unsqueeze(a: Analysis, node: fx.Node) -> Result | None:
    axis = a.value((*node.args[1:], *node.kwargs.values()))[0] % len(node.meta["val"].shape)
    return moved(a, node, lambda x, like: lb.unsqueeze(x, axis))


def flip(a: Analysis, node: fx.Node) -> Result | None:
    """Along a channel axis the channels come in the opposite order."""
    x, arguments = a.value(node.args[0]), a.value((*node.args[1:], *node.kwargs.values()))
    dims = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list | tuple) else arguments
    if not isinstance(x, Labels) or not all(isinstance(d, int) for d in dims):
        return None
    turned = {d % len(x.shape) for d in dims}

    def move(x: Labels, like: Labels | None) -> Labels:
        fields = [
            Field(f.axes, np.flip(f.ids, tuple(i for i, ax in enumerate(f.axes) if ax in turned))) for f in x.fields
        ]
        return Labels(x.shape, tuple(fields))

    return moved(a, node, move)


def roll(a: Analysis, node: fx.Node) -> Result | None:
    """Of positional axes: along a channel axis the shift would count channels that are gone."""
    arguments = a.call(node, "input", "shifts", "dims")
    x, dims = arguments.get("input"), arguments.get("dims", ())
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(x, Labels) or not dims or any(x.at(d % len(x.shape)) is not None for d in dims):
        return None
    return x, lambda cut: cut.value(node.args[0])


def sizes_of(node: fx.Node) -> tuple[Any, ...]:
    """The raw size arguments of a reshape."""
    rest = node.args[1:] or tuple(node.kwargs.values())
    if len(rest) == 1 and isinstance(rest[0], list | tuple):
        return tuple(rest[0])
    return tuple(rest)


def expand(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    shape = tuple(node.meta["val"].shape)
    off = len(shape) - len(x.shape)
    out = Labels(shape, tuple(Field(tuple(ax + off for ax in f.axes), f.ids) for f in x.fields))

    def recast(cut: CutView) -> Labels:
        source = cut.value(node.args[0])
        fields = tuple(Field(tuple(ax + off for ax in f.axes), f.ids) for f in source.fields)
        sizes = [source.shape[ax - off] if out.at(ax) else n for ax, n in enumerate(shape)]
        arguments = sizes_of(node)
        if getattr(node.target, "__name__", node.target) in ("expand", "broadcast_to"):
            new = [g if g == -1 or cut.value(g) == s else s for g, s in zip(arguments, sizes, strict=True)]
            # a function, for a method of Tensor cannot be called on what stands for one when this graph is traced again
            cut.rewrite(node, torch.broadcast_to, (node.args[0], tuple(new)))
        return Labels(tuple(sizes), fields)

    return out, recast


def repeat(a: Analysis, node: fx.Node) -> Result | None:
    x, times = a.value(node.args[0]), [int(t) for t in a.value(sizes_of(node))]
    if not isinstance(x, Labels) or len(times) != len(x.shape):
        return None
    if any(t > 1 and x.at(ax) is not None for ax, t in enumerate(times)):
        return None
    shape = tuple(node.meta["val"].shape)
    out = Labels(shape, x.fields)

    def recast(cut: CutView) -> Labels:
        cut.freeze_numbers(node)
        source = cut.value(node.args[0])
        return Labels(tuple(n * t for n, t in zip(source.shape, times, strict=True)), source.fields)

    return out, recast


FUNCTIONS: dict[str, Rule] = {
    "permute": permute, "transpose": transpose, "swapaxes": transpose, "swapdims": transpose, "t": transposed,
    "movedim": movedim, "moveaxis": movedim,
    "squeeze": squeeze, "unsqueeze": unsqueeze, "flip": flip, "roll": roll,
    "expand": expand, "expand_as": expand, "broadcast_to": expand, "repeat": repeat,
}  # fmt: skip
