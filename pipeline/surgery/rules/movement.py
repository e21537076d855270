"""Operations that move elements without changing them: their rule is to move the ids the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery import labels as lb
from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


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
    given = a.value(node.args[1:]) or tuple(a.value(node.kwargs).values())
    order = given[0] if isinstance(given[0], list | tuple) else given
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


def transposed(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    return moved_axes(a, node, range(len(x.shape))[::-1]) if isinstance(x, Labels) and len(x.shape) == 2 else None


def squeeze(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    given = (*a.value(node.args[1:]), *a.value(node.kwargs).values())
    rank = len(x.shape)
    dims = [g % rank for g in (given[0] if given and isinstance(given[0], list | tuple) else given)] or range(rank)
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
    x, given = a.value(node.args[0]), a.value((*node.args[1:], *node.kwargs.values()))
    dims = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
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
    given = {**dict(zip(("input", "shifts", "dims"), a.value(node.args), strict=False)), **a.value(node.kwargs)}
    x, dims = given.get("input"), given.get("dims", ())
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(x, Labels) or not dims or any(x.at(d % len(x.shape)) is not None for d in dims):
        return None
    return x, lambda cut: cut.value(node.args[0])


def _shrinking(a: Analysis, node: fx.Node, x: Labels, target: tuple[int, ...], out: Labels) -> dict[int, int]:
    """Per block of axes with channels, the output axis that shrinks; ties what must go together.

    Of several axes over which channels spread, the one whose size the code computes (or leaves to -1) shrinks, else
    the last; axes inside it are tied, axes outside it keep equal numbers.
    """
    given = _sizes(node)
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


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    """The raw size arguments of a reshape."""
    rest = node.args[1:] or tuple(node.kwargs.values())
    if len(rest) == 1 and isinstance(rest[0], list | tuple):
        return tuple(rest[0])
    return tuple(rest)


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
    out = lb.reshape(x, target)
    a.freeze(node, "a single channel is left", lb.lost(x, [out]))
    shrink, parts = _shrinking(a, node, x, target, out), lb.blocks(full, target)

    def recast(cut: Cut) -> Labels:
        source = cut.value(node.args[0])
        sizes = _target(cut, source, full, target, shrink)
        made = lb.reshape(source, sizes, out, parts)
        _same_rows(out, made, shrink)
        if name in ("view", "reshape") and sizes != target:
            given = _sizes(node)
            new = [g if g == -1 or cut.value(g) == s else s for g, s in zip(given, sizes, strict=True)]
            cut.rewrite(node, torch.reshape, (node.args[0], new))
        elif name == "unflatten" and sizes != target:
            cut.rewrite(node, torch.reshape, (node.args[0], _batched(cut, node, sizes)))
        elif name in ("view_as", "reshape_as") and cut.value(node.args[1]).shape != sizes:
            raise LayoutError("reshaped like a tensor of another width", source.all_ids())
        return made

    return out, recast


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


def expand(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    shape = tuple(node.meta["val"].shape)
    off = len(shape) - len(x.shape)
    out = Labels(shape, tuple(Field(tuple(ax + off for ax in f.axes), f.ids) for f in x.fields))

    def recast(cut: Cut) -> Labels:
        source = cut.value(node.args[0])
        fields = tuple(Field(tuple(ax + off for ax in f.axes), f.ids) for f in source.fields)
        sizes = [source.shape[ax - off] if out.at(ax) else n for ax, n in enumerate(shape)]
        given = _sizes(node)
        if getattr(node.target, "__name__", node.target) == "expand":
            new = [g if g == -1 or cut.value(g) == s else s for g, s in zip(given, sizes, strict=True)]
            cut.rewrite(node, torch.Tensor.expand, (node.args[0], *new))
        return Labels(tuple(sizes), fields)

    return out, recast


def repeat(a: Analysis, node: fx.Node) -> Result | None:
    x, times = a.value(node.args[0]), [int(t) for t in a.value(_sizes(node))]
    if not isinstance(x, Labels) or len(times) != len(x.shape):
        return None
    if any(t > 1 and x.at(ax) is not None for ax, t in enumerate(times)):
        return None
    shape = tuple(node.meta["val"].shape)
    out = Labels(shape, x.fields)

    def recast(cut: Cut) -> Labels:
        source = cut.value(node.args[0])
        return Labels(tuple(n * t for n, t in zip(source.shape, times, strict=True)), source.fields)

    return out, recast


def pixel_shuffle(a: Analysis, node: fx.Node) -> Result | None:
    """(N, C r^2, H, W) -> (N, C, H r, W r): r^2 channels become one."""
    x = a.value(node.args[0])
    ids = a.channels(node, x, 1) if isinstance(x, Labels) else None
    if ids is None:
        return None
    shape = tuple(node.meta["val"].shape)
    rows = ids.reshape(shape[1], -1)
    known = a.ledger.constant(rows)
    out = a.ledger.fresh(
        np.where((known == known[:, :1]).all(1), known[:, 0], np.nan), np.asarray(a.ledger.measured(rows).any(1))
    )
    a.ledger.tie(out[:, None], rows)

    def recast(cut: Cut) -> Labels:
        arrived = lb.positions(ids, cut.value(node.args[0]).at(1).ids).reshape(-1, rows.shape[1])
        whole = arrived // rows.shape[1]
        if (whole != whole[:, :1]).any():
            raise LayoutError("a pixel shuffle needs all its channels", ids)
        return Labels((shape[0], len(whole), *shape[2:]), (Field((1,), out[whole[:, 0]]),))

    return Labels(shape, (Field((1,), out),)), recast


def pixel_unshuffle(a: Analysis, node: fx.Node) -> Result | None:
    """(N, C, H r, W r) -> (N, C r^2, H, W): a channel becomes r^2 channels of the same fate."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels) or [f.axes for f in x.fields] != [(1,)]:
        return None
    shape = tuple(node.meta["val"].shape)
    times = shape[1] // x.shape[1]

    def move(x: Labels, like: Labels | None) -> Labels:
        return Labels((shape[0], x.shape[1] * times, *shape[2:]), (Field((1,), np.repeat(x.fields[0].ids, times)),))

    return moved(a, node, move)


def flatten_module(a: Analysis, node: fx.Node) -> Result | None:
    return reshape(a, node)


def unflatten_module(a: Analysis, node: fx.Node) -> Result | None:
    x = a.value(node.args[0])
    return None if not isinstance(x, Labels) or x.fields else reshape(a, node)


def pad(a: Analysis, node: fx.Node) -> Result | None:
    """Constant padding of a channel axis makes channels of that constant; of a positional axis it keeps zeros zero."""
    x = a.value(node.args[0])
    given = {**dict(zip(("input", "pad", "mode", "value"), a.value(node.args), strict=False)), **a.value(node.kwargs)}
    mode, fill = given.get("mode", "constant"), float(given.get("value") or 0.0)
    if not isinstance(x, Labels):
        return None
    sizes = [int(p) for p in given["pad"]]
    sides = {len(x.shape) - 1 - i // 2: (sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)}
    padded = {ax: lr for ax, lr in sides.items() if lr != (0, 0)}
    wide = [ax for ax in padded if x.at(ax) is not None]
    shape = tuple(node.meta["val"].shape)
    if not wide:
        from pipeline.surgery.rules.elementwise import over_positions

        steady = mode != "constant"
        return over_positions(
            a, node, x, shape, lambda v: torch.where((v == fill) | torch.tensor(steady), v, torch.nan)
        )
    if len(padded) > 1 or mode != "constant" or min(*padded[wide[0]]) < 0:
        return None
    return _pad_channels(a, node, x, wide[0], padded[wide[0]], fill, shape, sizes)


def _pad_channels(
    a: Analysis,
    node: fx.Node,
    x: Labels,
    axis: int,
    sides: tuple[int, int],
    fill: float,
    shape: tuple[int, ...],
    sizes: list[int],
) -> Result | None:
    f = x.at(axis)
    if f is None or f.axes != (axis,) or len(x.fields) > 1:
        return None
    left, right = (a.ledger.fresh(np.full(n, fill)) for n in sides)
    out = Labels(shape, (Field((axis,), np.concatenate([left, f.ids, right])),))

    def recast(cut: Cut) -> Labels:
        source = cut.value(node.args[0])
        before, after = left[cut.keep[left]], right[cut.keep[right]]
        at = 2 * (len(shape) - 1 - axis)
        cut.rewrite(
            node,
            torch.nn.functional.pad,
            (node.args[0], [*sizes[:at], len(before), len(after), *sizes[at + 2 :]], "constant", fill),
        )
        ids: Ids = np.concatenate([before, source.at(axis).ids, after])
        return Labels((*shape[:axis], len(ids), *shape[axis + 1 :]), (Field((axis,), ids),))

    return out, recast


MODULES: dict[type[nn.Module], Rule] = {
    nn.Flatten: flatten_module,
    nn.Unflatten: unflatten_module,
    nn.PixelShuffle: pixel_shuffle,
    nn.PixelUnshuffle: pixel_unshuffle,
}
from pipeline.surgery.rules import indexing, pieces  # noqa: E402  (pieces builds on `moved`)

FUNCTIONS: dict[str, Rule] = {
    "permute": permute, "transpose": transpose, "swapaxes": transpose, "swapdims": transpose, "t": transposed,
    "squeeze": squeeze, "unsqueeze": unsqueeze, "flip": flip, "roll": roll,
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"), reshape),
    "expand": expand, "expand_as": expand, "repeat": repeat, "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle, "pad": pad, **pieces.FUNCTIONS, **indexing.FUNCTIONS,
}  # fmt: skip
