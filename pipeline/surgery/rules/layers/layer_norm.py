"""Layer and group norm: statistics over several channels, which go on counting the ones removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import fx, nn

from pipeline.surgery.channels.analysis import Analysis, CutView, Recast, Result, Rule, named_arguments
from pipeline.surgery.channels.labels import Field, Ids, Labels, positions
from pipeline.surgery.rules.functions import group_norm_with_removed, layer_norm_with_removed, rms_norm_with_removed
from pipeline.surgery.rules.layers.batch_norm import as_numpy, parameter_name
from pipeline.surgery.rules.layers.linear import by_group


def _normalised(
    a: Analysis,
    node: fx.Node,
    x: Labels,
    axes: Sequence[int],
    weight: str | None,
    bias: str | None,
    groups: int = 1,
    centred: bool = True,
) -> tuple[Ids, Ids] | None:
    """Channels whose joint statistics are taken: (ids in, ids out) along the one channel axis among `axes`."""
    on = [ax for ax in axes if x.at(ax) is not None]
    for f in x.fields:
        if len(on) != 1 or f.axes != (on[0],):
            a.freeze(node, "normalised over several channel axes", f.ids)
    if len(on) != 1 or x.fields[0].axes != (on[0],) or len(x.fields) > 1:
        return None
    ids = x.fields[0].ids
    a.ledger.read(ids, a.ledger.constant(ids) == 0, "a constant other than 0 in the statistics of a normalisation")
    gamma = as_numpy(None if weight is None else a.tensor(weight), 1.0)
    beta = as_numpy(None if bias is None else a.tensor(bias), 0.0)
    steady = np.broadcast_to(gamma == 0, ids.shape)
    if not centred:  # nothing is taken from a zero
        steady = steady | (a.ledger.constant(ids) == 0)
    out = a.ledger.fresh(np.where(steady, np.broadcast_to(beta, ids.shape), np.nan), like=ids)
    if groups > 1:
        a.ledger.equal_rows(ids.reshape(groups, -1), droppable=True)
    return ids, out


def layer_norm(
    a: Analysis, node: fx.Node, x: Any, shape: Sequence[int], weight: str | None, bias: str | None, eps: float,
    arguments: Callable[[CutView], tuple[Any, Any, Any]], root_mean_square: bool = False,
) -> Result | None:  # fmt: skip
    """Over the last axes; a channel goes only if it is zero on both sides, and the statistics go on counting it."""
    if not isinstance(x, Labels) or any(n is not None and a.tensor(n).dim() > 1 for n in (weight, bias)):
        return None
    rank, dims = len(x.shape), len(shape)
    axes = list(range(rank - dims, rank))
    inside = Labels(x.shape, tuple(f for f in x.fields if set(f.axes) & set(axes)))
    for f in x.fields:
        if not set(f.axes) & set(axes):
            a.freeze(node, "each of these is normalised by itself", f.ids)
    pair = _normalised(a, node, inside, axes, weight, bias, centred=not root_mean_square)
    names = [n for n in (weight, bias) if n is not None]
    if pair is None:
        return Labels(x.shape), lambda cut: Labels(x.shape)
    ids, out = pair
    axis = inside.fields[0].axes[0]
    for n in names:
        a.bind(n, 0, out)

    def recast(cut: CutView) -> Labels:
        source = cut.value(node.args[0])
        arrived = positions(ids, source.at(axis).ids)
        for n in names:
            cut.slice(n, 0, arrived, out)
        if len(arrived) < len(ids):
            call, w, b = arguments(cut)
            full = prod(x.shape[ax] for ax in axes)
            if root_mean_square:
                cut.rewrite(node, rms_norm_with_removed, (call, w, eps, dims, full))
            else:
                cut.rewrite(node, layer_norm_with_removed, (call, w, b, eps, dims, full))
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
    raw = named_arguments(node, *order)
    call = a.value(raw)
    if any(isinstance(call.get(n), Labels) and call[n].parameter is None for n in ("weight", "bias")):
        return None
    return layer_norm(
        a, node, call["input"], call["normalized_shape"],
        parameter_name(call.get("weight")), parameter_name(call.get("bias")),
        call.get("eps", 1e-5), lambda cut: (raw["input"], raw.get("weight"), raw.get("bias")),
    )  # fmt: skip


def rms_norm_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.module(node)
    name = None if m.weight is None else f"{node.target}.weight"
    return layer_norm(
        a, node, a.value(node.args[0]), m.normalized_shape, name, None, m.eps,
        lambda cut: (node.args[0], cut.attribute(name), None), root_mean_square=True,
    )  # fmt: skip


def rms_norm_function(a: Analysis, node: fx.Node) -> Result | None:
    raw = named_arguments(node, "input", "normalized_shape", "weight", "eps")
    call = a.value(raw)
    weight = call.get("weight")
    if isinstance(weight, Labels) and weight.parameter is None:
        return None
    return layer_norm(
        a, node, call["input"], call["normalized_shape"], parameter_name(weight), None, call.get("eps"),
        lambda cut: (raw["input"], raw.get("weight"), None), root_mean_square=True,
    )  # fmt: skip


def reduced_rms_norm(a: Analysis, node: fx.Node) -> Result | None:
    """A root-mean-square norm of a network that was cut before."""
    x, weight, eps, dims, full = a.value(node.args)
    result = layer_norm(
        a, node, x, x.shape[-dims:], parameter_name(weight), None, eps,
        lambda cut: (node.args[0], node.args[1], None), root_mean_square=True,
    )  # fmt: skip
    return None if result is None else (result[0], _still(node, result[1], rms_norm_with_removed, full))


def _still(node: fx.Node, again: Recast, target: Callable[..., Any], full: int) -> Recast:
    """Once more with channels removed, the statistics go on counting `full` elements, the call's last argument."""

    def recast(cut: CutView) -> Any:
        out = again(cut)
        cut.rewrite(node, target, (*node.args[:-1], full))
        return out

    return recast


def reduced_layer_norm(a: Analysis, node: fx.Node) -> Result | None:
    """A layer norm of a network that was cut before."""
    x, weight, bias, eps, dims, full = a.value(node.args)
    names = [parameter_name(weight), parameter_name(bias)]
    result = layer_norm(
        a, node, x, x.shape[-dims:], names[0], names[1], eps, lambda cut: (node.args[0], node.args[1], node.args[2])
    )
    return None if result is None else (result[0], _still(node, result[1], layer_norm_with_removed, full))


def group_norm(
    a: Analysis, node: fx.Node, x: Any, groups: int, weight: str | None, bias: str | None, eps: float, full: int,
    arguments: Callable[[CutView], tuple[Any, Any, Any]],
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

    def recast(cut: CutView) -> Labels:
        arrived = positions(ids, cut.value(node.args[0]).at(1).ids)
        which, _ = by_group(arrived, len(ids) // groups, ids)
        for n in names:
            cut.slice(n, 0, arrived, out)
        if len(arrived) < len(ids):
            call, w, b = arguments(cut)
            cut.rewrite(node, group_norm_with_removed, (call, len(which), w, b, eps, full))
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
    raw = named_arguments(node, *order)
    call = a.value(raw)
    x = call["input"]
    if not isinstance(x, Labels) or any(
        isinstance(call.get(n), Labels) and call[n].parameter is None for n in ("weight", "bias")
    ):
        return None
    groups = call["num_groups"]
    return group_norm(
        a, node, x, groups, parameter_name(call.get("weight")), parameter_name(call.get("bias")),
        call.get("eps", 1e-5),
        x.shape[1] // groups, lambda cut: (raw["input"], raw.get("weight"), raw.get("bias")),
    )  # fmt: skip


def reduced_group_norm(a: Analysis, node: fx.Node) -> Result | None:
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


MODULES: dict[type[nn.Module], Rule] = {
    nn.LayerNorm: layer_norm_module, nn.GroupNorm: group_norm_module, nn.RMSNorm: rms_norm_module
}  # fmt: skip
FUNCTIONS: dict[str, Rule] = {
    "layer_norm": layer_norm_function,
    "group_norm": group_norm_function,
    "rms_norm": rms_norm_function,
    "rms_norm_with_removed": reduced_rms_norm,
    "layer_norm_with_removed": reduced_layer_norm,
    "group_norm_with_removed": reduced_group_norm,
}
