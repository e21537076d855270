"""view, reshape, flatten, unflatten: axes with channels split and merge, and shrink where the channels went."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery import labels as lb
from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Labels, LayoutError
from pipeline.surgery.rules.movement import sizes_of

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


def _shrinking(a: Analysis, node: fx.Node, x: Labels, target: tuple[int, ...], out: Labels) -> dict[int, int]:
    """Per block of axes with channels, the output axis that shrinks; ties what must go together.

    Of several axes over which channels spread, the one whose size the code computes (or leaves to -1) shrinks, else
    the last; axes inside it are tied, axes outside it keep equal numbers.
    """
    given = sizes_of(node)
    computed = (
        {i for i, s in enumerate(given) if isinstance(s, fx.Node) or s == -1} if len(given) == len(target) else set()
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
        shrink[n] = free[0] if len(free) == 1 else spread[-1]
        if len(spread) > 1:
            _constrain(a, out, shrink[n])
    return shrink


def _constrain(a: Analysis, out: Labels, axis: int) -> None:
    f = out.at(axis)
    assert f is not None
    at = f.axes.index(axis)
    inner = f.ids.reshape(*f.ids.shape[: at + 1], -1)
    a.ledger.tie(inner[..., :1], inner)
    a.ledger.equal_rows(inner[..., 0].reshape(-1, f.ids.shape[at]))


def _target(
    cut: Cut, x: Labels, full_in: tuple[int, ...], full_out: tuple[int, ...], shrink: dict[int, int]
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

    def recast(cut: Cut) -> Labels:
        source = cut.value(node.args[0])
        source = Labels(source.shape, tuple(f for f in source.fields if x.at(f.axes[0]) is not None))
        sizes = _target(cut, source, full, target, shrink)
        made = lb.reshape(source, sizes, out, parts)
        _same_rows(out, made, shrink)
        if name in ("view", "reshape"):
            new = _arguments(cut, node, sizes, parts)
            if new is not None:
                cut.rewrite(node, torch.reshape, (node.args[0], new))
        elif name == "unflatten" and sizes != target:
            cut.rewrite(node, torch.reshape, (node.args[0], _batched(cut, node, sizes)))
        elif name in ("view_as", "reshape_as") and cut.value(node.args[1]).shape != sizes:
            raise LayoutError("reshaped like a tensor of another width", source.all_ids())
        return made

    return out, recast


def _alone(a: Analysis, node: fx.Node, x: Labels, target: tuple[int, ...]) -> Labels:
    """`x` without the fields that the reshape would merge with one another; they are frozen."""
    merged = []
    for ins, _ in lb.blocks(x.shape, target):
        here = [f for f in x.fields if set(f.axes) & set(ins)]
        merged += here if len(here) > 1 else []
    for f in merged:
        a.freeze(node, "two channel axes become one", f.ids)
    return Labels(x.shape, tuple(f for f in x.fields if not any(f is g for g in merged)))


def _arguments(cut: Cut, node: fx.Node, sizes: tuple[int, ...], parts: list[lb.Block]) -> list[Any] | None:
    """The sizes to ask for, where those the code computes are no longer right; None where they are."""
    given: tuple[Any, ...] = sizes_of(node)
    batch = next(outs for ins, outs in parts if 0 in ins)
    if len(given) != len(sizes):  # one node for all of them: the shape of some tensor
        return (
            None if tuple(cut.value(given[0])) == sizes else [-1 if i == batch[0] else s for i, s in enumerate(sizes)]
        )
    new = [g if g == -1 or cut.value(g) == s else s for g, s in zip(given, sizes, strict=True)]
    wrong = [i for i, (g, n) in enumerate(zip(given, new, strict=True)) if g is not n]
    if not wrong:
        return None
    if len(wrong) == 1 and wrong[0] in batch and -1 not in given:
        new[wrong[0]] = -1  # a number would hold for one batch size
    return new


def _batched(cut: Cut, node: fx.Node, sizes: tuple[int, ...]) -> list[Any]:
    """Sizes of an unflatten as a reshape: the sizes before and after the axis are asked for when the network runs."""
    axis, parts = int(cut.value(node.args[1])), len(node.args[2])  # type: ignore[arg-type]
    rank = len(sizes) - parts + 1
    axis %= rank
    source = node.args[0]
    before = [cut.size(source, i) for i in range(axis)]
    after = [cut.size(source, i) for i in range(axis + 1, rank)]
    return [*before, *sizes[axis : axis + parts], *after]


def _same_rows(full: Labels, made: Labels, shrink: dict[int, int]) -> None:
    """Each entry of an axis that does not shrink holds channels of that same entry before the cut."""
    for f in made.fields:
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
