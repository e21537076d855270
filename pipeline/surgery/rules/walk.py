"""Walk the traced graph once and enter every channel in the ledger: a rule for each node, or frozen with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.surgery.channels.analysis import UNEXPECTED, Analysis, Result, Rule, Value, describe, opaque
from pipeline.surgery.channels.labels import Labels
from pipeline.surgery.rules import of_user, rule_for
from pipeline.surgery.rules.probe import probed
from pipeline.surgery.trace import Traced
from pipeline.surgery.trace.tracer import OPAQUE, first_line


def analyse(
    traced: Traced, residual: str = "tied", dead: Mapping[str, Tensor] | None = None,
    planned: Mapping[str, tuple[int, ...]] | None = None,
) -> Analysis:  # fmt: skip
    """The labels of every node.

    `dead`: watched output -> bool (channels,), True where a census saw only zeros. `planned`: weight of a layer ->
    output channels that stay by a plan, whatever the weights say.
    """
    a = Analysis(traced, residual)
    for node in traced.module.graph.nodes:
        rule = of_user(a, node) if OPAQUE in node.meta else rule_for(a, node)
        layers, size = len(a.layers), a.ledger.size
        a.env[node], a.recasts[node] = _result(a, node, rule)
        if traced.maps is not None:
            _prove(a, node, size)
        for layer in a.layers[layers:]:
            if planned is not None and layer.weight in planned and planned[layer.weight][-1] < len(layer.ids):
                a.ledger.plan(np.delete(layer.ids, planned[layer.weight]))
        if dead and node.name in dead:
            _hold(a, node, dead[node.name])
    return a


def _result(a: Analysis, node: fx.Node, rule: Rule | None) -> Result:
    """What the rule says; without one, or where it cannot take what the node has, all channels here are frozen."""
    layers = len(a.layers)
    try:
        result = None if rule is None else rule(a, node)
        if result is None and a.traced.probes and not _opaque(node) and of_user(a, node) is None:
            result = probed(a, node)
        if result is None:
            return opaque(a, node, str(node.meta.get(OPAQUE, f"no rule for {describe(a, node)}")))
        if _fits(result[0], node.meta.get("val")):
            return result
        reason = "its result has another shape"
    except torch.OutOfMemoryError:
        raise
    except UNEXPECTED as error:
        reason = first_line(error)
    del a.layers[layers:]  # what the rule tied or froze before it failed stays so: that keeps more, never less
    if node.op == "call_module":
        for name, _ in a.module(node).named_parameters():
            for f in a.parameter(f"{node.target}.{name}").fields:
                a.freeze(node, "read by a call that no rule takes", f.ids)
    return opaque(a, node, f"the rule for {describe(a, node)} cannot take this call ({reason})")


def _prove(a: Analysis, node: fx.Node, size: int) -> None:
    """Channels without positions that hold one number whatever the input is constants; of ids that were made here, the
    first of which is `size`, for others stand for tensors with positions too."""
    labels, values = a.env[node], a.traced.maps.values.get(node.name)
    if values is None or not isinstance(labels, Labels) or np.prod(labels.shape[2:]) != 1:
        return
    entry = labels.at(1)
    if entry is None or entry.axes != (1,) or len(np.unique(entry.ids)) < len(values):
        return
    new = (entry.ids >= size) & np.isnan(a.ledger.constant(entry.ids)) & np.isfinite(values)
    a.ledger.prove(entry.ids[new], values[new])
    a.at_this_size += int(new.sum())


def _opaque(node: fx.Node) -> bool:
    """Whether nothing may be concluded from trials: its inside is not known, or its function says that channels stay
    (an attribute `opaque` that is True)."""
    return OPAQUE in node.meta or getattr(node.target, OPAQUE, False) is True


def _hold(a: Analysis, node: fx.Node, mask: Tensor) -> None:
    labels = a.env[node]
    assert isinstance(labels, Labels)
    fits = [f for f in labels.fields if f.ids.shape == tuple(mask.shape)]
    if len(fits) != 1:
        raise ValueError(f"dead mask of {node.name} has shape {tuple(mask.shape)}; its channels do not")
    ids, dead = fits[0].ids, mask.cpu().numpy().astype(bool)
    a.ledger.hold(np.setdiff1d(ids[dead], ids[~dead]))  # flattened, one channel is several entries


def _fits(value: Value, val: Any) -> bool:
    return not isinstance(value, Labels) or not isinstance(val, Tensor) or value.shape == tuple(val.shape)
