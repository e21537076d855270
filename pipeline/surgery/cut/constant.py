"""Parts of a network that carry only constants: sides of additions, and maps that depend on no input.

A side of an addition that is a constant in every channel goes with all that makes it: what stays is the constant, or
nothing where that is 0. Maps that depend on no input become constants behind global pooling, for images of the
example's size; the graph then refuses other sizes. Both are for networks in eval mode.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.labels import Labels
from pipeline.surgery.channels.ledger import Floats
from pipeline.surgery.channels.maps import maps_of
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import Recorded, Traced, demand_sizes, in_place
from pipeline.surgery.trace.copies import modules_by_path
from runtime.errors import UserError

PREFIX = "constant_"
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def settled_constants(traced: Traced, analysis: Analysis | None) -> tuple[Traced, Analysis]:
    """The traced network without constant sides of additions, and with what is known of maps; and its analysis."""
    analysis = analysis or analyse(traced)
    pairs = filter(None, (_constant_side(analysis, node) for node in traced.module.graph.nodes))
    if sides := {side.name: values for side, values in pairs}:
        before = {layer.weight: len(layer.ids) for layer in analysis.layers}
        traced = without(traced, sides)
        analysis = analyse(traced)
        for layer in analysis.layers:
            before.pop(layer.weight, None)
        traced = analysis.traced = replace(traced, gone=before)
    if not analysis.bordered:
        return traced, analysis
    traced = replace(traced, maps=maps_of(traced.module, traced.example_inputs))
    if (analysis := analyse(traced)).at_this_size:
        traced = at_this_size(traced)
        analysis = analyse(traced)
    return traced, analysis


def planned_constants(traced: Traced, branches: Mapping[str, bool], sized: bool) -> Traced:
    """What a plan says of them, whatever the weights are. UserError where the network has no such addition."""
    sides = {node.name: node for node in traced.module.graph.nodes if any(u.target in ADDITIONS for u in node.users)}
    if missing := branches.keys() - sides.keys():
        raise UserError(
            f"the plan leaves out {min(missing)}, which the network does not add to anything",
            "the network the plan was made for", "use the same model, arguments and library versions",
        )  # fmt: skip
    if branches:
        traced = without(traced, {name: None if some else np.zeros(1) for name, some in branches.items()})
    return at_this_size(traced) if sized else traced


def at_this_size(traced: Traced) -> Traced:
    """The same for images of the example's size alone; the graph refuses others."""
    demand_sizes(traced.module.graph, traced.example_inputs)
    return replace(traced, sized=True)


def _constant_side(a: Analysis, node: fx.Node) -> tuple[fx.Node, Floats] | None:
    """Of an addition of two tensors of one shape, the side that is a constant in every channel by proof, and those
    constants (C,)."""
    if node.target not in ADDITIONS or node.kwargs or len(node.args) != 2 or node.args[0] is node.args[1]:
        return None
    sides = [x for x in node.args if isinstance(x, fx.Node) and x.op.startswith("call_")]
    shapes = [tuple(x.meta["val"].shape) for x in sides if isinstance(x.meta.get("val"), Tensor)]
    if len(shapes) < 2 or shapes[0] != shapes[1] or len(shapes[0]) < 2:
        return None
    for side in sides:
        labels = a.env[side]
        entry = labels.at(1) if isinstance(labels, Labels) else None
        if entry is None or entry.axes != (1,) or len(labels.fields) > 1 or a.ledger.measured(entry.ids).any():
            continue
        values = a.ledger.constant(entry.ids)
        if np.isfinite(values).all():
            return side, values
    return None


@torch.no_grad()
def without(traced: Traced, sides: Mapping[str, Floats | None]) -> Traced:
    """The traced network whose additions read parameters `constant_SIDE.weight` (1, C, ...) in the place of these
    sides, or go where their constants are 0; None, of a plan: they are not."""
    root, graph, modules = traced.module, traced.module.graph, modules_by_path(traced.module, every=True)
    exact, branches = dict(traced.computed), dict(traced.branches)
    for side in [node for node in graph.nodes if node.name in sides]:
        values, like = sides[side.name], side.meta["val"]
        shape = (1, like.shape[1], *(1 for _ in like.shape[2:]))
        numbers = torch.zeros(shape, dtype=torch.float64)
        if values is not None and values.any():
            numbers = torch.as_tensor(values).view(shape)
        branches[side.name] = values is None or bool(values.any())
        fetched = None
        if branches[side.name]:
            name, holder = f"{PREFIX}{side.name}", nn.Module()
            device = next((p.device for p in root.parameters()), torch.device("cpu"))
            exact[f"{name}.weight"] = numbers = numbers.to(device)
            holder.register_parameter("weight", nn.Parameter(numbers.to(like.dtype)))
            root.add_module(name, holder)
            with graph.inserting_before(side):
                fetched = graph.get_attr(f"{name}.weight")
            fetched.meta["val"] = torch.empty(shape, dtype=like.dtype, device="meta")
        for node in [user for user in side.users if user.target in ADDITIONS]:
            other = next(x for x in node.args if x is not side)
            # a copy, where the sum is overwritten in place: what it was added to may be read again
            node.op, node.target = ("call_method", "clone") if fetched is None else ("call_function", operator.add)
            node.args = (other,) if fetched is None else (other, fetched)
            if fetched is None and not any(in_place(user, modules) for user in node.users):
                node.replace_all_uses_with(other)
    erased = traced.erased | _erase(graph, modules)
    module = Recorded(root, graph, type(root).__name__)
    return replace(traced, module=module, computed=exact, branches=branches, erased=erased)


def _erase(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[str]:
    """Erase calls whose results nobody reads; those that overwrite what nobody else reads too. Their names."""
    names = {node.name for node in graph.nodes}
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        target = node.args[0] if node.args else None
        if not in_place(node, modules) or (
            isinstance(target, fx.Node) and len(target.users) == 1 and target.op != "placeholder"
        ):
            graph.erase_node(node)
    return names - {node.name for node in graph.nodes}
