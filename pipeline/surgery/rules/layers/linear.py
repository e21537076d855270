"""Maps that read the channels that enter and make those that leave: linear layers, and the core of convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from pipeline.surgery.channels.analysis import Analysis, CutView, Layer, Result, Rule, named_arguments
from pipeline.surgery.channels.labels import Field, Ids, Labels, LayoutError, distinct, positions
from pipeline.surgery.channels.ledger import Flags, Floats, finite
from pipeline.surgery.rules.layers.weights import Weights, array_of, not_zero, prod_out, rows_of, summed, unread


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
        inputs = a.ledger.constant(incoming)
        can_fold = w.bias is not None or (w.weight.endswith("weight") and w.computed is None)
        if w.padded:
            can_fold = w.groups == 1 and w.weight not in a.traced.computed
        folds = (inputs == 0) | (np.isfinite(inputs) & (can_fold and not shared))
        if w.padded and can_fold and not shared:
            a.ledger.padded.append(incoming[np.isfinite(inputs) & (inputs != 0)])
        if w.groups == 1 and not shared:
            folds |= unread(a.tensor(w.weight), w.in_axis)
        a.ledger.read(incoming, folds, _why_not_folded(w, shared))
    elif w.groups == 1 and shared:
        a.freeze(node, "reads a tensor that cannot be cut", a.axis_ids(w.weight, w.in_axis))
    if w.groups > 1:
        sides = [out] if incoming is None else [incoming, out]
        a.ledger.equal_rows(*(ids.reshape(w.groups, -1) for ids in sides), droppable=incoming is not None)
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
    new = (Field((axis,), out),) if len(out) > 1 else ()
    fields = new + tuple(f for f, _, _ in passing)

    def recast(cut: CutView) -> Labels:
        return _recast(cut, node, w, axis, incoming, out, passing, shape)

    return Labels(shape, fields), recast


def _why_not_folded(w: Weights, shared: bool) -> str:
    if shared:
        return "a constant that enters a weight which is used more than once"
    kind = "a grouped convolution" if w.groups > 1 else "a convolution of computed weights"
    return f"a constant that enters {kind} with zero padding" if w.padded else "a constant that no bias takes up"


def _outgoing(a: Analysis, w: Weights, incoming: Ids | None) -> tuple[Floats, Flags | bool]:
    """Constants of the output channels: what is left when nothing that varies reaches them."""
    weight = a.tensor(w.weight)
    count = prod_out(weight, w)
    bias = np.full(count, 0.0 if w.computed is None else np.nan)
    if w.bias is not None:
        bias = array_of(a.tensor(w.bias)).astype(np.float64)
    inputs = None if incoming is None else a.ledger.constant(incoming)
    each = rows_of(weight, w)
    group = np.arange(count) // (count // w.groups) if w.groups > 1 else np.zeros(count, np.int64)
    steady = np.zeros((w.groups, each.shape[1]), bool)
    if inputs is not None:
        steady = (np.isfinite(inputs) & np.logical_or(inputs == 0, not w.padded)).reshape(w.groups, -1)
    if inputs is not None and w.padded and w.groups == 1:
        a.bordered |= _of_constants(each, inputs)
    values, census = np.full(count, np.nan), np.zeros(count, bool)
    varying = np.argmin(steady, 1)[group]  # an input of each that varies, if any does
    few = np.flatnonzero((each[np.arange(count), varying, 0] == 0) | np.asarray(steady.all(1))[group])
    some = not_zero(each, few)  # most outputs are done with at this point
    values[few[~some]] = bias[few[~some]]
    if inputs is None or incoming is None:
        return values, False
    few = few[some]
    if not len(few):
        return values, False
    reach = (each[few] != 0).any(2)  # (few, in / groups)
    rest = ~(reach & ~steady[group[few]]).any(1)
    few, reach = few[rest], reach[rest]
    local = finite(inputs).reshape(w.groups, -1)[group[few]]
    values[few] = bias[few] + (each[few].sum(2, dtype=np.float64) * local).sum(1)
    census[few] = (a.ledger.measured(incoming).reshape(w.groups, -1)[group[few]] & reach).any(1)
    return values, census


def _of_constants(rows: NDArray[Any], inputs: Floats) -> bool:
    """Whether an output (out, in, taps) reads constants other than 0 and nothing that varies."""
    constant = np.isfinite(inputs)
    if not inputs[constant].any():
        return False
    varying = rows[:, ~constant].any((1, 2))
    return bool((rows[:, constant & (inputs != 0)].any((1, 2)) & ~varying).any())


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
        inputs = np.where((a.ledger.constant(unique) == 0) & plain, 0.0, np.nan)
        ids = a.ledger.fresh(inputs, a.ledger.measured(unique), like=unique)
        out.append((Field(f.axes, ids[inverse].reshape(f.ids.shape)), unique, ids))
    return out


def _recast(
    cut: CutView, node: fx.Node, w: Weights, axis: int, incoming: Ids | None, out: Ids,
    passing: list[tuple[Field, Ids, Ids]], full: tuple[int, ...],
) -> Labels:  # fmt: skip
    source = cut.value(node.args[0])
    rows = cut.remaining(out)
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
        entering = source.at(f.axes[0])
        fields.append(Field(f.axes, ids[np.searchsorted(unique, entering.ids)]))
        for ax, n in zip(f.axes, entering.ids.shape, strict=True):
            shape[ax] = n
    return Labels(tuple(shape), tuple(fields))


def _slice_groups(
    cut: CutView, node: fx.Node, w: Weights, arrived: Ids | None, incoming: Ids | None, rows: Ids, out: Ids
) -> None:
    """Each group keeps as many inputs and as many outputs as every other, or goes with all of them."""
    weight = cut.analysis.tensor(w.weight)
    per_out = prod_out(weight, w) // w.groups
    per_in = weight.shape[w.in_axis] // (w.groups if w.out_axis == 1 else 1)
    every_in = np.arange(per_in * w.groups) if arrived is None else arrived
    which, ins = by_group(every_in, per_in, out if incoming is None else incoming)
    same, outs = by_group(rows, per_out, out)
    if not np.array_equal(which, same):
        raise LayoutError("a group keeps inputs or outputs alone", out if incoming is None else np.r_[incoming, out])
    into, across = (outs, ins % per_in) if w.out_axis == 0 else (ins, outs % per_out)
    cut.regroup(w.weight, into, across)
    if len(which) < w.groups:
        cut.set_groups(node, len(which))


def by_group(index: Ids, size: int, ids: Ids) -> tuple[Ids, Ids]:
    """The groups of `size` channels that stay, and their entries that stay, a row a group: of each as many."""
    which = np.unique(index // size)
    if len(index) % len(which):
        raise LayoutError("groups keep different numbers of channels", ids)
    rows: Ids = index.reshape(len(which), -1)
    if (rows // size != which[:, None]).any():
        raise LayoutError("channels left their group", ids)
    return which, rows


def _fold(cut: CutView, node: fx.Node, w: Weights, incoming: Ids, arrived: Ids, rows: Ids) -> None:
    """Add what the removed constant channels contributed to the bias."""
    gone = np.ones(len(incoming), bool)
    gone[arrived] = False
    inputs = np.where(gone, finite(cut.analysis.ledger.constant(incoming)), 0.0)
    if not inputs.any():
        return
    if w.padded and w.groups == 1:
        _merge(cut, node, w, incoming, arrived, rows)
        return
    if w.out_axis == 1 and w.groups > 1:
        raise LayoutError("constants through a grouped transposed convolution", incoming[gone])
    weight = cut.analysis.tensor(w.weight)
    if w.groups == 1:
        columns = torch.as_tensor(np.flatnonzero(inputs), device=weight.device)
        total = summed(weight.detach().index_select(w.in_axis, columns), w).cpu().numpy()
        cut.fold(node, w.weight, w.bias, (total @ inputs[inputs != 0])[rows])
        return
    group = np.arange(prod_out(weight, w)) // (prod_out(weight, w) // w.groups)
    local = inputs.reshape(w.groups, -1)[group]
    cut.fold(node, w.weight, w.bias, (summed(weight, w).cpu().numpy() * local).sum(1)[rows])


def _merge(cut: CutView, node: fx.Node, w: Weights, incoming: Ids, arrived: Ids, rows: Ids) -> None:
    """Constants behind zero padding: what they contribute is the kernel of one constant channel, exact at borders too.

    That is one that stays anyway, or else a channel of ones.
    """
    ledger = cut.analysis.ledger
    inputs = finite(ledger.constant(incoming))
    staying = np.where(ledger.measured(incoming[arrived]), 0.0, np.abs(inputs[arrived]))
    into = int(staying.argmax()) if staying.any() else None
    inputs[arrived] = 0.0
    columns = np.flatnonzero(inputs)
    weight = cut.analysis.tensor(w.weight).detach()
    taken = weight.index_select(w.in_axis, torch.as_tensor(columns, device=weight.device))
    taken = taken.index_select(w.out_axis, torch.as_tensor(rows, device=weight.device)).double()
    shape = [-1 if axis == w.in_axis else 1 for axis in range(weight.dim())]
    scales = torch.as_tensor(inputs[columns], device=weight.device).reshape(shape)
    kernel = (taken * scales).sum(w.in_axis, keepdim=True)
    value = 1.0 if into is None else float(ledger.constant(incoming[arrived[into]]))
    cut.merge(node, w.weight, w.in_axis, kernel / value, into, len(columns))


def linear_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.module(node)
    name, x = str(node.target), a.value(node.args[0])
    if not isinstance(x, Labels):
        return None
    bias = None if m.bias is None else f"{name}.bias"
    return mix(a, node, x, -1, Weights(name, f"{name}.weight", bias))


def linear_function(a: Analysis, node: fx.Node) -> Result | None:
    arguments = a.call(node, "input", "weight", "bias")
    x, weight, bias = arguments.get("input"), arguments.get("weight"), arguments.get("bias")
    if not isinstance(x, Labels) or not isinstance(weight, Labels) or weight.parameter is None:
        return None
    raw = named_arguments(node, "input", "weight", "bias").get("bias")
    name = bias.parameter if isinstance(bias, Labels) else None
    computed = raw if isinstance(raw, fx.Node) and isinstance(bias, Labels) and name is None else None
    owner = weight.parameter.rpartition(".")[0]
    return mix(a, node, x, -1, Weights(owner, weight.parameter, name, computed=computed))


MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear), linear_module)
}
FUNCTIONS: dict[str, Rule] = {"linear": linear_function}
