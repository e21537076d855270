"""Normalisations and per-channel slopes: one parameter a channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Rule
from pipeline.surgery.channels.labels import Field, Labels, positions
from pipeline.surgery.channels.ledger import Floats
from pipeline.surgery.rules.layers.weights import array_of

Constants = Callable[[Floats], Floats]  # per position of the axis


def per_channel(
    a: Analysis, node: fx.Node, x: Labels, axis: int, parameters: Sequence[str], constants: Constants,
    rewrite: Callable[[CutView, int], None] | None = None,
) -> Result:  # fmt: skip
    """y[c] = f_c(x[c]) with parameters indexed by c."""
    axis %= len(x.shape)
    ids = a.channels(node, x, axis)
    if ids is None:
        for name in parameters:
            a.freeze(node, "belongs to channels that cannot be cut", a.parameter(name).all_ids())
        return Labels(x.shape), lambda cut: Labels(x.shape)
    out = a.ledger.fresh(constants(a.ledger.constant(ids)), a.ledger.measured(ids), like=ids)
    for name in parameters:
        a.bind(name, 0, out)

    def recast(cut: CutView) -> Labels:
        source = cut.value(node.args[0])
        arrived = positions(ids, source.at(axis).ids)
        for name in parameters:
            cut.slice(name, 0, arrived, out)
        if rewrite is not None:
            rewrite(cut, len(arrived))
        shape = (*source.shape[:axis], len(arrived), *source.shape[axis + 1 :])
        return Labels(shape, (Field((axis,), out[arrived]),))

    return Labels(x.shape, (Field((axis,), out),)), recast


def as_numpy(t: Tensor | None, default: float) -> Any:
    return default if t is None else array_of(t).astype(np.float64)


def batch_norm(
    a: Analysis,
    node: fx.Node,
    x: Any,
    names: Sequence[str | None],
    eps: float,
) -> Result | None:
    """Eval mode: y = gamma * (x - mean) / sqrt(var + eps) + beta; gamma = 0 makes a constant of anything."""
    mean, var, weight, bias = names
    if not isinstance(x, Labels) or len(x.shape) < 2 or mean is None or var is None:
        return None
    gamma, beta = (None if n is None else a.tensor(n) for n in (weight, bias))
    scale = as_numpy(gamma, 1.0) / np.sqrt(as_numpy(a.tensor(var), 1.0) + eps)
    shift, middle = as_numpy(beta, 0.0), as_numpy(a.tensor(mean), 0.0)

    def constants(v: Floats) -> Floats:
        out: Floats = np.where(scale == 0, shift, (v - middle) * scale + shift)
        return out

    return per_channel(a, node, x, 1, [n for n in (mean, var, weight, bias) if n is not None], constants)


def batch_norm_module(a: Analysis, node: fx.Node) -> Result | None:
    m: Any = a.module(node)
    names = [
        f"{node.target}.{n}" if getattr(m, n) is not None else None
        for n in ("running_mean", "running_var", "weight", "bias")
    ]
    return batch_norm(a, node, a.value(node.args[0]), names, m.eps)


def batch_norm_function(a: Analysis, node: fx.Node) -> Result | None:
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    arguments = a.call(node, *order)
    if arguments.get("training", False):
        return None
    names = [parameter_name(arguments.get(n)) for n in ("running_mean", "running_var", "weight", "bias")]
    return batch_norm(a, node, arguments.get("input"), names, arguments.get("eps", 1e-5))


def parameter_name(x: Any) -> str | None:
    return x.parameter if isinstance(x, Labels) else None


def instance_norm(a: Analysis, node: fx.Node) -> Result | None:
    """Statistics of each channel alone: a constant channel becomes its beta."""
    m: Any = a.module(node)
    x = a.value(node.args[0])
    if not isinstance(x, Labels) or m.track_running_stats:
        return None
    names = [f"{node.target}.{n}" for n in ("weight", "bias") if getattr(m, n) is not None]
    beta, gamma = as_numpy(m.bias, 0.0), as_numpy(m.weight, 1.0)
    return per_channel(a, node, x, 1, names, lambda v: np.where(np.isfinite(v) | (gamma == 0), beta, np.nan))


def prelu(a: Analysis, node: fx.Node) -> Result | None:
    if node.op == "call_module":
        weight = f"{node.target}.weight"
    else:
        named = parameter_name(a.value(node.args[1])) if len(node.args) == 2 else None
        if named is None:
            return None
        weight = named
    x, slope = a.value(node.args[0]), as_numpy(a.tensor(weight), 0.0)
    if not isinstance(x, Labels) or len(x.shape) < 2:
        return None
    names = [weight] if len(slope) > 1 else []
    return per_channel(a, node, x, 1, names, lambda v: np.where(v >= 0, v, v * slope))


MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), batch_norm_module),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
    nn.PReLU: prelu,
}
FUNCTIONS: dict[str, Rule] = {"batch_norm": batch_norm_function, "prelu": prelu}
