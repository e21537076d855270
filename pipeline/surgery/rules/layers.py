"""Maps that read the channels that enter and make those that leave: linear layers, and the core of convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.analysis import Analysis, Layer, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError, distinct, positions
from pipeline.surgery.ledger import Flags, Floats, finite
from pipeline.surgery.rules.weights import Weights, array_of, not_zero, prod_out, rows_of, summed

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


def mix(a: Analysis, node: fx.Node, x: Labels, axis: int, w: Weights) -> Result:
    """A dense or grouped map over `axis` of `x`; every other field of `x` passes through."""
    axis %= len(x.shape)
    incoming = a.channels(node, x, axis, others=True)
    shared = a.uses[a.canonical(w.weight)] > 1
    constants, measured = _outgoing(a, w, incoming)
    out = a.ledger.fresh(constants, measured)
    if w.out_axis == 0 or w.groups == 1:
        a.bind(w.weight, w.out_axis, out)
    if incoming is not None:
        if w.groups == 1:
            a.bind(w.weight, w.in_axis, incoming)
        known = a.ledger.constant(incoming)
        can_fold = w.bias is not None or (w.weight.endswith("weight") and w.computed is None)
        folds = (known == 0) | (np.isfinite(known) & (not w.padded and can_fold and not shared))
        a.ledger.read(incoming, folds)
        if w.groups > 1:
            a.ledger.equal_rows(incoming.reshape(w.groups, -1))
    elif w.groups == 1 and shared:
        a.freeze(node, "reads a tensor that cannot be cut", a.axis_ids(w.weight, w.in_axis))
    if w.groups > 1:
        a.ledger.equal_rows(out.reshape(w.groups, -1))
        if shared:
            every = out if incoming is None else np.r_[incoming, out]
            a.freeze(node, "a grouped weight that is used more than once", every)
    if w.bias is not None:
        a.bind(w.bias, 0, out)
    if w.computed is not None:
        a.ledger.tie(out, _computed(a, node, w, out))
    a.layers.append(Layer(node, w.name, w.weight, w.out_axis, out))
    shape = tuple(node.meta["val"].shape)
    passing = _passing(a, node, x, axis, w)
    made = (Field((axis,), out),) if len(out) > 1 else ()
    fields = made + tuple(f for f, _, _ in passing)

    def recast(cut: Cut) -> Labels:
        return _recast(cut, node, w, axis, incoming, out, passing, shape)

    return Labels(shape, fields), recast


def _outgoing(a: Analysis, w: Weights, incoming: Ids | None) -> tuple[Floats, Flags | bool]:
    """Constants of the output channels: what is left when nothing that varies reaches them."""
    weight = a.tensor(w.weight)
    count = prod_out(weight, w)
    bias = np.full(count, 0.0 if w.computed is None else np.nan)
    if w.bias is not None:
        bias = array_of(a.tensor(w.bias)).astype(np.float64)
    known = None if incoming is None else a.ledger.constant(incoming)
    each = rows_of(weight, w)
    group = np.arange(count) // (count // w.groups) if w.groups > 1 else np.zeros(count, np.int64)
    steady = np.zeros((w.groups, each.shape[1]), bool)
    if known is not None:
        steady = (np.isfinite(known) & np.logical_or(known == 0, not w.padded)).reshape(w.groups, -1)
    values, census = np.full(count, np.nan), np.zeros(count, bool)
    varying = np.argmin(steady, 1)[group]  # an input of each that varies, if any does
    few = np.flatnonzero((each[np.arange(count), varying, 0] == 0) | np.asarray(steady.all(1))[group])
    some = not_zero(each, few)  # most outputs are done with at this point
    values[few[~some]] = bias[few[~some]]
    if known is None or incoming is None:
        return values, False
    few = few[some]
    if not len(few):
        return values, False
    reach = (each[few] != 0).any(2)  # (few, in / groups)
    rest = ~(reach & ~steady[group[few]]).any(1)
    few, reach = few[rest], reach[rest]
    local = finite(known).reshape(w.groups, -1)[group[few]]
    values[few] = bias[few] + (each[few].sum(2, dtype=np.float64) * local).sum(1)
    census[few] = (a.ledger.measured(incoming).reshape(w.groups, -1)[group[few]] & reach).any(1)
    return values, census


def _computed(a: Analysis, node: fx.Node, w: Weights, out: Ids) -> Ids:
    """The channels of a bias that is computed; where it has none, those of the layer cannot go."""
    f = a.value(w.computed).at(0)
    if f is not None and f.axes == (0,):
        ids: Ids = f.ids
        return ids
    a.freeze(node, "added to a bias that cannot be cut", out)
    return out


def _passing(a: Analysis, node: fx.Node, x: Labels, axis: int, w: Weights) -> list[tuple[Field, Ids, Ids]]:
    """Fields on other axes: their channels are mixed along `axis` only, and a zero one stays zero without a bias."""
    out = []
    for f in x.fields:
        if axis in f.axes:
            continue
        unique, inverse = distinct(f.ids)
        plain = w.bias is None and w.computed is None
        known = np.where((a.ledger.constant(unique) == 0) & plain, 0.0, np.nan)
        ids = a.ledger.fresh(known, a.ledger.measured(unique), like=unique)
        out.append((Field(f.axes, ids[inverse].reshape(f.ids.shape)), unique, ids))
    return out


def _recast(
    cut: Cut, node: fx.Node, w: Weights, axis: int, incoming: Ids | None, out: Ids,
    passing: list[tuple[Field, Ids, Ids]], full: tuple[int, ...],
) -> Labels:  # fmt: skip
    source = cut.value(node.args[0])
    rows = cut.kept(out)
    arrived = None if incoming is None else positions(incoming, source.at(axis).ids)
    if w.groups == 1:
        cut.slice(w.weight, w.out_axis, rows, out)
        if arrived is not None and incoming is not None:
            cut.slice(w.weight, w.in_axis, arrived, incoming)
    else:
        _slice_groups(cut, node, w, arrived, incoming, rows, out)
    if w.bias is not None:
        cut.slice(w.bias, 0, rows, out)
    if w.computed is not None and (f := cut.value(w.computed).at(0)) is not None:
        before = cut.analysis.value(w.computed).at(0)
        if not np.array_equal(positions(before.ids, f.ids), rows):
            raise LayoutError("a computed bias keeps other channels than its layer", out)
    if incoming is not None and arrived is not None:
        _fold(cut, node, w, incoming, arrived, rows)
    shape = list(full)
    shape[axis] = len(rows)
    fields = [Field((axis,), out[rows])] if len(out) > 1 else []
    for f, unique, ids in passing:
        kept = source.at(f.axes[0])
        fields.append(Field(f.axes, ids[np.searchsorted(unique, kept.ids)]))
        for ax, n in zip(f.axes, kept.ids.shape, strict=True):
            shape[ax] = n
    return Labels(tuple(shape), tuple(fields))


def _slice_groups(
    cut: Cut, node: fx.Node, w: Weights, arrived: Ids | None, incoming: Ids | None, rows: Ids, out: Ids
) -> None:
    """Each group keeps as many inputs and as many outputs as every other."""
    weight = cut.analysis.tensor(w.weight)
    per_out = prod_out(weight, w) // w.groups
    per_in = weight.shape[w.in_axis] // (w.groups if w.out_axis == 1 else 1)
    every_in = np.arange(per_in * w.groups) if arrived is None else arrived
    names = out if incoming is None else incoming
    if len(every_in) % w.groups or len(rows) % w.groups:
        raise LayoutError("groups keep different numbers of channels", np.r_[names, out])
    ins, outs = every_in.reshape(w.groups, -1), rows.reshape(w.groups, -1)
    if (ins // per_in != np.arange(w.groups)[:, None]).any() or (outs // per_out != np.arange(w.groups)[:, None]).any():
        raise LayoutError("channels left their group", np.r_[names, out])
    cut.regroup(w.weight, w.out_axis, outs % per_out, ins % per_in)


def _fold(cut: Cut, node: fx.Node, w: Weights, incoming: Ids, arrived: Ids, rows: Ids) -> None:
    """Add what the removed constant channels contributed to the bias."""
    gone = np.ones(len(incoming), bool)
    gone[arrived] = False
    known = np.where(gone, finite(cut.analysis.ledger.constant(incoming)), 0.0)
    if not known.any():
        return
    if w.out_axis == 1 and w.groups > 1:
        raise LayoutError("constants through a grouped transposed convolution", incoming[gone])
    weight = cut.analysis.tensor(w.weight)
    if w.groups == 1:
        columns = torch.as_tensor(np.flatnonzero(known), device=weight.device)
        total = summed(weight.detach().index_select(w.in_axis, columns), w).cpu().numpy()
        cut.fold(node, w.weight, w.bias, (total @ known[known != 0])[rows])
        return
    group = np.arange(prod_out(weight, w)) // (prod_out(weight, w) // w.groups)
    local = known.reshape(w.groups, -1)[group]
    cut.fold(node, w.weight, w.bias, (summed(weight, w).cpu().numpy() * local).sum(1)[rows])


def linear_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.module(node)
    name, x = str(node.target), a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    bias = None if m.bias is None else f"{name}.bias"
    return mix(a, node, x, -1, Weights(name, f"{name}.weight", bias))


def linear_function(a: Analysis, node: fx.Node) -> Result | None:
    given = {**dict(zip(("input", "weight", "bias"), a.value(node.args), strict=False)), **a.value(node.kwargs)}
    x, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
    if not isinstance(x, Labels) or not isinstance(weight, Labels) or weight.parameter is None:
        return None
    raw = {**dict(zip(("input", "weight", "bias"), node.args, strict=False)), **node.kwargs}.get("bias")
    name = bias.parameter if isinstance(bias, Labels) else None
    computed = raw if isinstance(raw, fx.Node) and isinstance(bias, Labels) and name is None else None
    owner = weight.parameter.rpartition(".")[0]
    return mix(a, node, x, -1, Weights(owner, weight.parameter, name, computed=computed))


MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear), linear_module)
}
FUNCTIONS: dict[str, Rule] = {"linear": linear_function}
