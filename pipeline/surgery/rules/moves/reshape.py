"""view, reshape, flatten, unflatten: axes with channels split and merge, and shrink where the channels went."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.channels import labels as lb
from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule
from pipeline.surgery.channels.labels import Field, Ids, Labels, LayoutError
from pipeline.surgery.rules.moves.permute import sizes_of


def _shrinking(a: Analysis, node: fx.Node, x: Labels, target: tuple[int, ...], out: Labels) -> dict[int, int]:
    """Per block of axes with channels, the output axis that shrinks; ties what must go together.

    Of several axes over which channels spread, the one whose size the code computes (or leaves to -1) shrinks, else
    the last; axes inside it are tied, axes outside it keep equal numbers.
    """
    requested = sizes_of(node)
    computed = (
        {i for i, s in enumerate(requested) if isinstance(s, fx.Node) or s == -1}
        if len(requested) == len(target)
        else set()
    )
    shrink: dict[int, int] = {}
    for n, (ins, outs) in enumerate(lb.blocks(x.shape, target)):
        if not any(x.at(ax) is not None for ax in ins):
            continue
        spread = [ax for ax in outs if out.at(ax) is not None]
        if not spread:
            shrink[n] = next((ax for ax in outs if target[ax] > 1), outs[-1])
            continue
        free = [ax for ax in spread if ax in computed]
        shrink[n] = _shrinks(a, out, spread, free[0] if len(free) == 1 else spread[-1])
        if len(spread) > 1:
            _constrain(a, out, shrink[n])
    return shrink


def _shrinks(a: Analysis, out: Labels, spread: list[int], default: int) -> int:
    """Of several axes the one along which most channels that are zero can go; `default` where that says nothing."""
    if len(spread) == 1:
        return default
    f = out.at(default)
    if f is None or any(ax not in f.axes for ax in spread):
        return default
    zero = a.ledger.zero(f.ids)

    def gain(axis: int) -> int:
        at = f.axes.index(axis)
        rows = zero.reshape(*zero.shape[: at + 1], -1).all(-1).reshape(-1, zero.shape[at]).sum(1)
        return int(rows.min() * zero.size // zero.shape[at])

    return max([default, *spread], key=gain)


def _constrain(a: Analysis, out: Labels, axis: int) -> None:
    f = out.at(axis)
    assert f is not None
    at = f.axes.index(axis)
    inner = f.ids.reshape(*f.ids.shape[: at + 1], -1)
    a.ledger.tie_lines(inner)
    a.ledger.equal_rows(inner[..., 0].reshape(-1, f.ids.shape[at]))


def _target(
    cut: CutView, x: Labels, full_in: tuple[int, ...], full_out: tuple[int, ...], shrink: dict[int, int]
) -> tuple[int, ...]:
    out = list(full_out)
    for n, (ins, outs) in enumerate(lb.blocks(full_in, full_out)):
        if n in shrink:
            others = prod(full_out[ax] for ax in outs if ax != shrink[n])
            size = prod(x.shape[ax] for ax in ins)
            if size % others:
                raise LayoutError("the kept channels do not fill a reshaped axis evenly", x.all_ids())
            out[shrink[n]] = size // others
    return tuple(out)


def reshape(a: Analysis, node: fx.Node) -> Result | None:
    """view, reshape, flatten, unflatten."""
    x = a.value(node.args[0])
    name = getattr(node.target, "__name__", node.target)
    if not isinstance(x, Labels) or (
        name == "view" and node.args[1:] and isinstance(a.value(node.args[1]), torch.dtype)
    ):
        return None
    full = x.shape
    target = tuple(node.meta["val"].shape)
    x = _alone(a, node, x, target)
    out = lb.reshape(x, target)
    a.freeze(node, "a single channel is left", lb.lost(x, [out]))
    shrink, parts = _shrinking(a, node, x, target, out), lb.blocks(full, target)
    maps = _maps(a, node, out, shrink)

    def recast(cut: CutView) -> Labels:
        source = cut.value(node.args[0])
        source = Labels(source.shape, tuple(f for f in source.fields if x.at(f.axes[0]) is not None))
        sizes = _target(cut, source, full, target, shrink)
        result = lb.reshape(source, sizes, out, parts)
        _same_rows(out, result, shrink)
        if name in ("view", "reshape"):
            new = _arguments(cut, node, sizes, parts)
            if new is not None:
                cut.rewrite(node, torch.reshape, (node.args[0], new))
        elif name == "unflatten" and sizes != target:
            cut.rewrite(node, torch.reshape, (node.args[0], _batched(cut, node, sizes)))
        elif name in ("view_as", "reshape_as") and cut.value(node.args[1]).shape != sizes:
            raise LayoutError("reshaped like a tensor of another width", source.all_ids())
        return result if maps is None else _as_maps(out, result, maps)

    return (out if maps is None else replace(out, fields=(Field((1,), maps),))), recast


def _maps(a: Analysis, node: fx.Node, out: Labels, shrink: dict[int, int]) -> Ids | None:
    """Ids (channels,) where entries become the pixels of feature maps (N, C, ...): the inverse of flatten.

    The entries of a map go together by then, and what reads maps, a convolution say, asks for channels on axis 1 alone.
    """
    if len(out.fields) != 1 or out.fields[0].axes[0] != 1 or len(out.fields[0].axes) < 2 or not _reads_maps(a, node):
        return None
    if list(shrink.values()) != [1] or out.fields[0].axes[-1] != len(out.shape) - 1:
        return None
    entries = out.fields[0].ids.reshape(out.shape[1], -1)
    constants = a.ledger.constant(entries)
    same = (constants == constants[:, :1]).all(1)
    measured = np.asarray(a.ledger.measured(entries).any(1))
    return a.ledger.fresh(np.where(same, constants[:, 0], np.nan), measured, like=entries[:, 0])


def _reads_maps(a: Analysis, node: fx.Node) -> bool:
    """Whether the first call behind that is not elementwise in modules of one input is a convolution or batch norm."""
    while len(node.users) == 1:
        (node,) = node.users
        kind = type(a.module(node)) if node.op == "call_module" else None
        if kind is not None and issubclass(kind, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm):
            return len(node.meta["val"].shape) > 2
        sizes = [getattr(n.meta.get("val"), "shape", None) for n in (node, *node.all_input_nodes)]
        if len(sizes) != 2 or sizes[0] != sizes[1]:
            return False
    return False


def _as_maps(full: Labels, result: Labels, maps: Ids) -> Labels:
    """After the cut: the maps of which all entries are there."""
    first = result.fields[0].ids.reshape(result.shape[1], -1)[:, 0]
    at = lb.positions(full.fields[0].ids.reshape(len(maps), -1)[:, 0], first)
    return replace(result, fields=(Field((1,), maps[at]),))


def _alone(a: Analysis, node: fx.Node, x: Labels, target: tuple[int, ...]) -> Labels:
    """`x` without the fields that the reshape would merge with one another; they are frozen."""
    merged = []
    for ins, _ in lb.blocks(x.shape, target):
        here = [f for f in x.fields if set(f.axes) & set(ins)]
        merged += here if len(here) > 1 else []
    for f in merged:
        a.freeze(node, "two channel axes become one", f.ids)
    return Labels(x.shape, tuple(f for f in x.fields if not any(f is g for g in merged)))


def _arguments(cut: CutView, node: fx.Node, sizes: tuple[int, ...], parts: list[lb.Block]) -> list[Any] | None:
    """The sizes to ask for, where those the code computes are no longer right; None where they are."""
    requested: tuple[Any, ...] = sizes_of(node)
    batch = next(outs for ins, outs in parts if 0 in ins)
    if len(requested) != len(sizes):  # one node for all of them: the shape of some tensor
        return (
            None
            if tuple(cut.value(requested[0])) == sizes
            else [-1 if i == batch[0] else s for i, s in enumerate(sizes)]
        )
    new = [g if g == -1 or cut.value(g) == s else s for g, s in zip(requested, sizes, strict=True)]
    wrong = [i for i, (g, n) in enumerate(zip(requested, new, strict=True)) if g is not n]
    if not wrong:
        return None
    if len(wrong) == 1 and wrong[0] in batch and -1 not in requested:
        new[wrong[0]] = -1  # a number would hold for one batch size
    return new


def _batched(cut: CutView, node: fx.Node, sizes: tuple[int, ...]) -> list[Any]:
    """Sizes of an unflatten as a reshape: the sizes before and after the axis are asked for when the network runs."""
    axis, parts = int(cut.value(node.args[1])), len(node.args[2])  # type: ignore[arg-type]
    rank = len(sizes) - parts + 1
    axis %= rank
    source = node.args[0]
    before = [cut.size(source, i) for i in range(axis)]
    after = [cut.size(source, i) for i in range(axis + 1, rank)]
    return [*before, *sizes[axis : axis + parts], *after]


def _same_rows(full: Labels, result: Labels, shrink: dict[int, int]) -> None:
    """Each entry of an axis that does not shrink holds channels of that same entry before the cut."""
    for f in result.fields:
        old = full.at(f.axes[0])
        assert old is not None
        before = np.unravel_index(lb.positions(old.ids.ravel(), f.ids.ravel()), old.ids.shape)
        for i, axis in enumerate(f.axes):
            if axis not in shrink.values() and (before[i] != np.indices(f.ids.shape)[i].ravel()).any():
                raise LayoutError("channels would change rows", f.ids)


def flatten_module(a: Analysis, node: fx.Node) -> Result | None:
    return reshape(a, node)


def unflatten_module(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    return None if not isinstance(x, Labels) or x.fields else reshape(a, node)


MODULES: dict[type[nn.Module], Rule] = {nn.Flatten: flatten_module, nn.Unflatten: unflatten_module}
FUNCTIONS: dict[str, Rule] = dict.fromkeys(
    ("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"), reshape
)
