"""Convolutions and linear maps: they read the channels that enter and make the channels that leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pipeline.surgery.analysis import Analysis, Layer, Result, Rule
from pipeline.surgery.labels import Field, Ids, Labels, LayoutError, positions
from pipeline.surgery.ledger import Flags, Floats
from pipeline.surgery.rules.elementwise import over_positions

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


@dataclass(frozen=True)
class Weights:
    """A layer's parameters by name: weight (out, in / groups, *kernel) when `out_axis` is 0, the two swapped when 1."""

    name: str
    weight: str
    bias: str | None
    out_axis: int = 0
    groups: int = 1
    padded: bool = False  # zero padding lets a border see fewer channels: only zeros fold

    @property
    def in_axis(self) -> int:
        return 1 - self.out_axis


def _absolute(weight: Tensor, w: Weights) -> Tensor:
    """Sums over the kernel, float64 (out, in / groups)."""
    flat = weight.detach().to(torch.float64)
    flat = flat.flatten(2).sum(2) if flat.dim() > 2 else flat
    return flat if w.out_axis == 0 else flat.t()


def _rows(weight: Tensor, w: Weights) -> Tensor:
    """The weight as (out, in / groups, taps)."""
    weight = weight.detach()
    if w.out_axis == 1:
        weight = weight.transpose(0, 1)
        weight = torch.cat(weight.chunk(w.groups, 1)) if w.groups > 1 else weight
    return weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)


def _reach(weight: Tensor, w: Weights) -> Tensor:
    """Whether any tap of the kernel is non-zero, (out, in / groups)."""
    flat = weight.detach()
    taps = flat.flatten(2).ne(0).any(2) if flat.dim() > 2 else flat.ne(0)
    return taps if w.out_axis == 0 else taps.t()


def _all_zero(rows: Tensor) -> Tensor:
    """Whether each rows[i] is zero throughout; only rows that start with a zero are read to the end."""
    still = rows[(slice(None),) + (0,) * (rows.dim() - 1)] == 0
    if still.any():
        still[still.clone()] = ~rows[still].flatten(1).ne(0).any(1)
    return still


def mix(a: Analysis, node: fx.Node, x: Labels, axis: int, w: Weights) -> Result:
    """A dense or grouped map over `axis` of `x`; every other field of `x` passes through."""
    axis %= len(x.shape)
    incoming = a.channels(node, x, axis, others=True)
    weight = a.tensor(w.weight)
    columns = a.axis_ids(w.weight, w.in_axis) if w.groups == 1 else None
    rows = (
        a.axis_ids(w.weight, w.out_axis)
        if w.out_axis == 0 or w.groups == 1
        else a.ledger.varying((prod_out(weight, w),))
    )
    if incoming is not None:
        if columns is not None:
            a.ledger.tie(columns, incoming)
        known = a.ledger.constant(incoming)
        can_fold = w.bias is not None or w.weight.endswith("weight")
        folds = (known == 0) | (np.isfinite(known) & (not w.padded) & can_fold & (a.uses[a.canonical(w.weight)] == 1))
        a.ledger.read(incoming, folds)
        if w.groups > 1:
            a.ledger.equal_rows(incoming.reshape(w.groups, -1))
            a.ledger.equal_rows(rows.reshape(w.groups, -1))
    elif w.groups > 1:
        a.ledger.equal_rows(rows.reshape(w.groups, -1))
    elif columns is not None and a.uses[a.canonical(w.weight)] > 1:
        a.freeze(node, "reads a tensor that cannot be cut", columns)
    if w.groups > 1 and a.uses[a.canonical(w.weight)] > 1:
        a.freeze(
            node, "a grouped weight that is used more than once", rows if incoming is None else np.r_[incoming, rows]
        )
    constants, measured = _outgoing(a, w, incoming)
    out = a.ledger.fresh(constants, measured)
    a.ledger.tie(out, rows)
    if w.bias is not None:
        a.ledger.tie(out, a.axis_ids(w.bias, 0))
    a.layers.append(Layer(node, w.name, w.weight, w.out_axis, out))
    shape = tuple(node.meta["val"].shape)
    passing = _passing(a, node, x, axis, w)
    made = (Field((axis,), out),) if len(out) > 1 else ()
    fields = made + tuple(f for f, _, _ in passing)

    def recast(cut: Cut) -> Labels:
        return _recast(cut, node, w, axis, incoming, out, passing, shape)

    return Labels(shape, fields), recast


def prod_out(weight: Tensor, w: Weights) -> int:
    """Output channels of a layer."""
    return weight.shape[w.out_axis] * (w.groups if w.out_axis == 1 else 1)


def _outgoing(a: Analysis, w: Weights, incoming: Ids | None) -> tuple[Floats, Flags | bool]:
    """Constants of the output channels: what is left when nothing that varies reaches them."""
    weight = a.tensor(w.weight)
    count = prod_out(weight, w)
    bias = np.zeros(count) if w.bias is None else a.tensor(w.bias).detach().to(torch.float64).cpu().numpy()
    known = None if incoming is None else a.ledger.constant(incoming)
    if known is None or np.isnan(known).all():
        still = _all_zero(weight.detach().movedim(w.out_axis, 0)).cpu().numpy()
        if w.out_axis == 1 and w.groups > 1:
            still = np.tile(still, w.groups)
        return np.where(still, bias, np.nan), False
    assert incoming is not None
    steady = (np.isfinite(known) & ((known == 0) | (not w.padded))).reshape(w.groups, -1)
    group = np.arange(count) // (count // w.groups)
    each = _rows(weight, w)
    values, census = np.full(count, np.nan), np.zeros(count, bool)
    varying = torch.as_tensor(np.argmin(steady, 1)[group], device=each.device)  # one input of each that varies, if any
    sample = each[torch.arange(count, device=each.device), varying, 0]
    few = np.flatnonzero(sample.eq(0).cpu().numpy() | steady.all(1)[group])  # most outputs are done with at this point
    some = each[torch.as_tensor(few, device=each.device)].ne(0).any(2).cpu().numpy()  # (few, in / groups)
    still = few[~(some & ~steady[group[few]]).any(1)]
    reach = some[~(some & ~steady[group[few]]).any(1)]
    moving = reach.any(1)
    local = np.nan_to_num(known).reshape(w.groups, -1)[group[still[moving]]]
    total = each[torch.as_tensor(still[moving], device=each.device)].to(torch.float64).sum(2).cpu().numpy()
    values[still] = bias[still]
    values[still[moving]] += (total * local).sum(1)
    census[still] = (a.ledger.measured(incoming).reshape(w.groups, -1)[group[still]] & reach).any(1)
    return values, census


def _passing(a: Analysis, node: fx.Node, x: Labels, axis: int, w: Weights) -> list[tuple[Field, Ids, Ids]]:
    """Fields on other axes: their channels are mixed along `axis` only, and a zero one stays zero without a bias."""
    out = []
    for f in x.fields:
        if axis in f.axes:
            continue
        unique, inverse = np.unique(f.ids, return_inverse=True)
        known = np.where((a.ledger.constant(unique) == 0) & (w.bias is None), 0.0, np.nan)
        ids = a.ledger.fresh(known, a.ledger.measured(unique))
        a.ledger.tie(unique, ids)
        out.append((Field(f.axes, ids[inverse.ravel()].reshape(f.ids.shape)), unique, ids))
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
    known = np.where(gone, np.nan_to_num(cut.analysis.ledger.constant(incoming)), 0.0)
    if not known.any():
        return
    if w.out_axis == 1 and w.groups > 1:
        raise LayoutError("constants through a grouped transposed convolution", incoming[gone])
    weight = cut.analysis.tensor(w.weight)
    if w.groups == 1:
        columns = torch.as_tensor(np.flatnonzero(known), device=weight.device)
        total = _absolute(weight.detach().index_select(w.in_axis, columns), w).cpu().numpy()
        cut.fold(node, w.weight, w.bias, (total @ known[known != 0])[rows])
        return
    group = np.arange(prod_out(weight, w)) // (prod_out(weight, w) // w.groups)
    local = known.reshape(w.groups, -1)[group]
    cut.fold(node, w.weight, w.bias, (_absolute(weight, w).cpu().numpy() * local).sum(1)[rows])


def depthwise(a: Analysis, node: fx.Node, x: Labels, w: Weights) -> Result:
    """One input channel a group: each output lives and goes with its input."""
    weight = a.tensor(w.weight)
    count = prod_out(weight, w)
    ids = a.channels(node, x, 1)
    shape = tuple(node.meta["val"].shape)
    out_ids = a.axis_ids(w.weight, 0)
    if ids is None or (w.out_axis == 1 and weight.shape[1] != 1):
        if ids is not None:
            a.freeze(node, "transposed depthwise convolution with several outputs a channel", ids)
        a.freeze(node, "depthwise convolution of channels that cannot be cut", out_ids)
        return Labels(shape), lambda cut: Labels(shape)
    times = count // len(ids)
    known, taps = a.ledger.constant(ids), _reach(weight, w).cpu().numpy()
    total = _absolute(weight, w).cpu().numpy().reshape(-1)
    reach = taps.reshape(-1)
    bias = np.zeros(count) if w.bias is None else a.tensor(w.bias).detach().to(torch.float64).cpu().numpy()
    each = np.repeat(known, times)
    steady = (each == 0) | (np.isfinite(each) & (not w.padded)) | ~reach
    value = np.where(steady, bias + np.where(reach, total, 0.0) * np.nan_to_num(each), np.nan)
    out = a.ledger.fresh(value, np.repeat(a.ledger.measured(ids), times) & reach)
    a.ledger.tie(out, np.repeat(ids, times))
    a.ledger.tie(out, out_ids)
    if w.bias is not None:
        a.ledger.tie(out, a.axis_ids(w.bias, 0))
    a.layers.append(Layer(node, w.name, w.weight, 0, out))

    def recast(cut: Cut) -> Labels:
        arrived = positions(ids, cut.value(node.args[0]).at(1).ids)
        rows = (arrived[:, None] * times + np.arange(times)).ravel()
        cut.slice(w.weight, 0, rows, out)
        if w.bias is not None:
            cut.slice(w.bias, 0, rows, out)
        cut.set_groups(node, len(arrived))
        return Labels((shape[0], len(rows), *shape[2:]), (Field((1,), out[rows]),))

    return Labels(shape, (Field((1,), out),)), recast


def _pads(padding: Any, mode: str = "zeros") -> bool:
    if mode != "zeros" or padding == "valid":
        return False
    return padding == "same" or bool(np.any(np.asarray(padding) != 0))


def _convolution(a: Analysis, node: fx.Node, x: Any, w: Weights, spatial: int) -> Result | None:
    if not isinstance(x, Labels) or len(x.shape) != spatial + 2:
        return None
    if w.groups > 1 and w.groups == x.shape[1]:
        return depthwise(a, node, x, w)
    for f in x.fields:
        if 1 not in f.axes:
            a.freeze(node, "a convolution runs along this axis", f.ids)
    return mix(a, node, Labels(x.shape, tuple(f for f in x.fields if 1 in f.axes)), 1, w)


def conv_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.traced.module.get_submodule(str(node.target))
    name, transposed = str(node.target), bool(m.transposed)
    bias = None if m.bias is None else f"{name}.bias"
    # A transposed convolution sees fewer taps at the border even without padding.
    padded = transposed or _pads(m.padding, m.padding_mode)
    w = Weights(name, f"{name}.weight", bias, int(transposed), m.groups, padded)
    return _convolution(a, node, a.value(node.args[0]), w, len(m.kernel_size))


def conv_function(a: Analysis, node: fx.Node) -> Result | None:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, a.value(node.args), strict=False)), **a.value(node.kwargs)}
    weight, bias, x = given.get("weight"), given.get("bias"), given.get("input")
    if not isinstance(weight, Labels) or weight.parameter is None or (isinstance(bias, Labels) and not bias.parameter):
        return None
    owner = weight.parameter.rpartition(".")[0]
    bias_name = bias.parameter if isinstance(bias, Labels) else None
    w = Weights(owner, weight.parameter, bias_name, 0, given.get("groups", 1), _pads(given.get("padding", 0)))
    return _convolution(a, node, x, w, len(weight.shape) - 2)


def linear_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.traced.module.get_submodule(str(node.target))
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
    if isinstance(bias, Labels) and bias.parameter is None:
        return None
    owner = weight.parameter.rpartition(".")[0]
    return mix(a, node, x, -1, Weights(owner, weight.parameter, bias.parameter if isinstance(bias, Labels) else None))


def average(a: Analysis, node: fx.Node) -> Result | None:
    """Average pooling: a constant survives unless zero padding is averaged in."""
    x = a.value(node.args[0])
    if not isinstance(x, Labels) or len(node.meta["val"].shape) != len(x.shape):
        return None
    if node.op == "call_module":
        m: Any = a.traced.module.get_submodule(str(node.target))
        padding, counted = m.padding, m.count_include_pad
    else:
        names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
        given = {**dict(zip(names, a.value(node.args), strict=False)), **a.value(node.kwargs)}
        padding, counted = given.get("padding", 0), given.get("count_include_pad", True)
    zeros = _pads(padding) and counted
    return over_positions(
        a, node, x, tuple(node.meta["val"].shape), lambda v: torch.where(v == 0, v, torch.nan) if zeros else v
    )


MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv_module),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), conv_module),
    **dict.fromkeys((nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear), linear_module),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), average),
}
FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv_function),
    "linear": linear_function,
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), average),
}
