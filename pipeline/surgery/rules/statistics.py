"""Layer and group norm: statistics over several channels, which go on counting the ones removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx, nn

from pipeline.surgery.analysis import Analysis, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError, positions
from pipeline.surgery.norms import group_norm_over_kept, layer_norm_over_kept
from pipeline.surgery.rules.norms import as_numpy, parameter_name

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


def _normalised(
    a: Analysis, node: fx.Node, x: Labels, axes: Sequence[int], weight: str | None, bias: str | None, groups: int = 1
) -> tuple[Ids, Ids] | None:
    """Channels whose joint statistics are taken: (ids in, ids out) along the one channel axis among `axes`."""
    on = [ax for ax in axes if x.at(ax) is not None]
    for f in x.fields:
        if len(on) != 1 or f.axes != (on[0],):
            a.freeze(node, "normalised over several channel axes", f.ids)
    if len(on) != 1 or x.fields[0].axes != (on[0],) or len(x.fields) > 1:
        return None
    ids = x.fields[0].ids
    a.ledger.read(ids, a.ledger.constant(ids) == 0)
    gamma = as_numpy(None if weight is None else a.tensor(weight), 1.0)
    beta = as_numpy(None if bias is None else a.tensor(bias), 0.0)
    steady = np.broadcast_to(gamma == 0, ids.shape)
    out = a.ledger.fresh(np.where(steady, np.broadcast_to(beta, ids.shape), np.nan), like=ids)
    if groups > 1:
        a.ledger.equal_rows(ids.reshape(groups, -1))
    return ids, out


def layer_norm(
    a: Analysis, node: fx.Node, x: Any, shape: Sequence[int], weight: str | None, bias: str | None, eps: float,
    arguments: Callable[[Cut], tuple[Any, Any, Any]],
) -> Result | None:  # fmt: skip
    """Over the last axes; a channel goes only if it is zero on both sides, and the statistics go on counting it."""
    if not isinstance(x, Labels) or any(n is not None and a.tensor(n).dim() > 1 for n in (weight, bias)):
        return None
    rank, dims = len(x.shape), len(shape)
    axes = list(range(rank - dims, rank))
    inside = Labels(x.shape, tuple(f for f in x.fields if set(f.axes) & set(axes)))
    if len(inside.fields) < len(x.fields):
        return None
    pair = _normalised(a, node, x, axes, weight, bias)
    names = [n for n in (weight, bias) if n is not None]
    if pair is None:
        return Labels(x.shape), lambda cut: Labels(x.shape)
    ids, out = pair
    axis = x.fields[0].axes[0]
    for n in names:
        a.bind(n, 0, out)

    def recast(cut: Cut) -> Labels:
        source = cut.value(node.args[0])
        arrived = positions(ids, source.at(axis).ids)
        for n in names:
            cut.slice(n, 0, arrived, out)
        if len(arrived) < len(ids):
            given, w, b = arguments(cut)
            cut.rewrite(node, layer_norm_over_kept, (given, w, b, eps, dims, prod(x.shape[ax] for ax in axes)))
        size = (*source.shape[:axis], len(arrived), *source.shape[axis + 1 :])
        return Labels(size, (Field((axis,), out[arrived]),))

    return Labels(x.shape, (Field((axis,), out),)), recast


def layer_norm_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.module(node)
    names = [None if getattr(m, n) is None else f"{node.target}.{n}" for n in ("weight", "bias")]
    return layer_norm(
        a, node, a.value(node.args[0]), m.normalized_shape, names[0], names[1], m.eps,
        lambda cut: (node.args[0], cut.attribute(names[0]), cut.attribute(names[1])),
    )  # fmt: skip


def layer_norm_function(a: Analysis, node: fx.Node) -> Result | None:
    order = ("input", "normalized_shape", "weight", "bias", "eps")
    raw = {**dict(zip(order, node.args, strict=False)), **node.kwargs}
    given = a.value(raw)
    if any(isinstance(given.get(n), Labels) and given[n].parameter is None for n in ("weight", "bias")):
        return None
    return layer_norm(
        a, node, given["input"], given["normalized_shape"],
        parameter_name(given.get("weight")), parameter_name(given.get("bias")),
        given.get("eps", 1e-5), lambda cut: (raw["input"], raw.get("weight"), raw.get("bias")),
    )  # fmt: skip


def kept_layer_norm(a: Analysis, node: fx.Node) -> Result | None:
    """A layer norm of a network that was cut before."""
    x, weight, bias, eps, dims, full = a.value(node.args)
    names = [parameter_name(weight), parameter_name(bias)]
    result = layer_norm(
        a, node, x, x.shape[-dims:], names[0], names[1], eps, lambda cut: (node.args[0], node.args[1], node.args[2])
    )
    if result is None:
        return None
    labels, again = result

    def recast(cut: Cut) -> Any:
        out = again(cut)
        cut.rewrite(node, layer_norm_over_kept, (*node.args[:5], full))
        return out

    return labels, recast


def group_norm(
    a: Analysis, node: fx.Node, x: Any, groups: int, weight: str | None, bias: str | None, eps: float, full: int,
    arguments: Callable[[Cut], tuple[Any, Any, Any]],
) -> Result | None:  # fmt: skip
    """Statistics of a group of channels and all positions; `full` channels a group are counted."""
    if not isinstance(x, Labels):
        return None
    pair = _normalised(a, node, x, list(range(1, len(x.shape))), weight, bias, groups)
    if pair is None:
        return Labels(x.shape), lambda cut: Labels(x.shape)
    ids, out = pair
    names = [n for n in (weight, bias) if n is not None]
    for n in names:
        a.bind(n, 0, out)

    def recast(cut: Cut) -> Labels:
        arrived = positions(ids, cut.value(node.args[0]).at(1).ids)
        if (
            len(arrived) % groups
            or (arrived.reshape(groups, -1) // (len(ids) // groups) != np.arange(groups)[:, None]).any()
        ):
            raise LayoutError("channels left their group", ids)
        for n in names:
            cut.slice(n, 0, arrived, out)
        if len(arrived) < len(ids):
            given, w, b = arguments(cut)
            cut.rewrite(node, group_norm_over_kept, (given, groups, w, b, eps, full))
        return Labels((x.shape[0], len(arrived), *x.shape[2:]), (Field((1,), out[arrived]),))

    return Labels(x.shape, (Field((1,), out),)), recast


def group_norm_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.module(node)
    names = [None if getattr(m, n) is None else f"{node.target}.{n}" for n in ("weight", "bias")]
    return group_norm(
        a, node, a.value(node.args[0]), m.num_groups, names[0], names[1], m.eps, m.num_channels // m.num_groups,
        lambda cut: (node.args[0], cut.attribute(names[0]), cut.attribute(names[1])),
    )  # fmt: skip


def group_norm_function(a: Analysis, node: fx.Node) -> Result | None:
    order = ("input", "num_groups", "weight", "bias", "eps")
    raw = {**dict(zip(order, node.args, strict=False)), **node.kwargs}
    given = a.value(raw)
    x = given["input"]
    if not isinstance(x, Labels) or any(
        isinstance(given.get(n), Labels) and given[n].parameter is None for n in ("weight", "bias")
    ):
        return None
    groups = given["num_groups"]
    return group_norm(
        a, node, x, groups, parameter_name(given.get("weight")), parameter_name(given.get("bias")),
        given.get("eps", 1e-5),
        x.shape[1] // groups, lambda cut: (raw["input"], raw.get("weight"), raw.get("bias")),
    )  # fmt: skip


def kept_group_norm(a: Analysis, node: fx.Node) -> Result | None:
    x, groups, weight, bias, eps, full = a.value(node.args)
    return group_norm(
        a,
        node,
        x,
        groups,
        parameter_name(weight),
        parameter_name(bias),
        eps,
        full,
        lambda cut: (node.args[0], node.args[2], node.args[3]),
    )


MODULES: dict[type[nn.Module], Rule] = {nn.LayerNorm: layer_norm_module, nn.GroupNorm: group_norm_module}
FUNCTIONS: dict[str, Rule] = {
    "layer_norm": layer_norm_function,
    "group_norm": group_norm_function,
    "layer_norm_over_kept": kept_layer_norm,
    "group_norm_over_kept": kept_group_norm,
}
