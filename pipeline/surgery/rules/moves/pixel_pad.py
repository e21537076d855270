"""Pixel (un)shuffle and padding: positions become channels, channels positions, and new channels appear."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.channels import labels as lb
from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule
from pipeline.surgery.channels.labels import Field, Ids, Labels, LayoutError
from pipeline.surgery.rules.moves.permute import moved


def pixel_shuffle(a: Analysis, node: fx.Node) -> Result | None:
    """(N, C r^2, H, W) -> (N, C, H r, W r): r^2 channels become one."""
    x = a.value(node.args[0])
    ids = a.channels(node, x, 1) if isinstance(x, Labels) else None
    if ids is None:
        return None
    shape = tuple(node.meta["val"].shape)
    rows = ids.reshape(shape[1], -1)
    constants = a.ledger.constant(rows)
    out = a.ledger.fresh(
        np.where((constants == constants[:, :1]).all(1), constants[:, 0], np.nan),
        np.asarray(a.ledger.measured(rows).any(1)),
    )
    a.ledger.tie(out[:, None], rows)

    def recast(cut: CutView) -> Labels:
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


def pad(a: Analysis, node: fx.Node) -> Result | None:
    """Constant padding of a channel axis makes channels of that constant; of a positional axis it keeps zeros zero."""
    x = a.value(node.args[0])
    arguments = {
        **dict(zip(("input", "pad", "mode", "value"), a.value(node.args), strict=False)),
        **a.value(node.kwargs),
    }
    mode, fill = arguments.get("mode", "constant"), float(arguments.get("value") or 0.0)
    if not isinstance(x, Labels):
        return None
    sizes = [int(p) for p in arguments["pad"]]
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
    low, high = (a.ledger.fresh(np.full(n, fill)) for n in sides)
    out = Labels(shape, (Field((axis,), np.concatenate([low, f.ids, high])),))

    def recast(cut: CutView) -> Labels:
        source = cut.value(node.args[0])
        before, after = low[cut.keep[low]], high[cut.keep[high]]
        at = 2 * (len(shape) - 1 - axis)
        cut.rewrite(
            node,
            torch.nn.functional.pad,
            (node.args[0], [*sizes[:at], len(before), len(after), *sizes[at + 2 :]], "constant", fill),
        )
        ids: Ids = np.concatenate([before, source.at(axis).ids, after])
        return Labels((*shape[:axis], len(ids), *shape[axis + 1 :]), (Field((axis,), ids),))

    return out, recast


def ones_behind(a: Analysis, node: fx.Node) -> Result | None:
    """The channel of ones of a network that was cut before."""
    x, shape = a.value(node.args[0]), tuple(node.meta["val"].shape)
    if not isinstance(x, Labels) or [f.axes for f in x.fields] != [(1,)]:
        return None
    one = a.ledger.fresh(np.ones(1))

    def behind(x: Labels) -> Labels:
        ids: Ids = np.concatenate([x.fields[0].ids, one])
        return Labels((shape[0], len(ids), *shape[2:]), (Field((1,), ids),))

    return behind(x), lambda cut: behind(cut.value(node.args[0]))


MODULES: dict[type[nn.Module], Rule] = {nn.PixelShuffle: pixel_shuffle, nn.PixelUnshuffle: pixel_unshuffle}
FUNCTIONS: dict[str, Rule] = {
    "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle, "pad": pad,
    "with_ones": ones_behind,
}  # fmt: skip
