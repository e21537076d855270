"""Weights that a network computes from its parameters alone, such as standardised weights or positions from an MLP.

Where no rule can follow the computation, its result becomes a parameter of the traced network: the same function in
eval mode, and channels can go. What it was computed from goes with it, so a compact network trains that result itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.cut.constant import settled_constants
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import Recorded, Traced, erase_unread
from pipeline.surgery.trace.copies import deep_copy, modules_by_path
from pipeline.surgery.trace.float64 import CONSTANT, Double, in_double, widened
from pipeline.surgery.trace.tracer import OPAQUE
from runtime.errors import UserError


def settle(traced: Traced) -> Traced:
    """As `settled`, without the analysis."""
    return settled(traced)[0]


def settled(traced: Traced, constants: bool = True) -> tuple[Traced, Analysis | None]:
    """A traced network with what stands in the way of a cut made parameters: weights that are computed, and, with
    `constants`, parts that carry only constants. With it comes an analysis of it, where one was made."""
    traced, analysis = settled_weights(traced)
    return settled_constants(traced, analysis) if constants and traced.frozen is None else (traced, analysis)


def settled_weights(traced: Traced, only: Iterable[str] | None = None) -> tuple[Traced, Analysis | None]:
    """Make parameters of computed weights at which the analysis freezes channels, or of those that `only` names.

    `only` holds names of nodes, as `Traced.computed` has them; UserError where the network computes no such weight.
    The network the graph shares its parameters with is left untouched. With it comes the analysis of a graph that
    stayed as it was, where one was made.
    """
    inside = from_parameters_alone(traced.module.graph)
    chosen = set(only or ())
    missing = chosen - {node.name for node in inside}
    if missing:
        raise UserError(
            f"the plan replaces {min(missing)}, which the network does not compute from its parameters",
            "the network the plan was made for", "use the same model, arguments and library versions",
        )  # fmt: skip
    if not inside or (only is not None and not chosen):
        return traced, None
    groups, analysis = connected(inside), None
    if only is None:
        analysis = analyse(traced)
        stuck = {f.where for f in analysis.ledger.freezes}
        groups = [g for g in groups if any(m.name in stuck or str(m.target) in stuck for n in g for m in (n, *n.users))]
        chosen = {n.name for g in groups for n in g if leaves_group(n, set(g))}
    groups = [g for g in groups if any(n.name in chosen for n in g)]
    if not groups:
        return traced, analysis
    return replaced(traced, chosen, [n for n in inside if any(n in g for g in groups)]), None


def from_parameters_alone(graph: fx.Graph) -> list[fx.Node]:
    """Calls whose every input is a parameter, a buffer, a constant or the result of such a call; in order."""
    entry: dict[fx.Node, bool] = {}  # node -> whether it is a call; of get_attr nodes False
    for node in graph.nodes:
        if node.op == "get_attr":
            entry[node] = False
        elif node.op.startswith("call_") and OPAQUE not in node.meta:
            before = node.all_input_nodes
            if before and all(n in entry for n in before):
                entry[node] = True
    return [node for node, call in entry.items() if call]


def connected(nodes: list[fx.Node]) -> list[list[fx.Node]]:
    """Calls that read each other's results, group by group."""
    group: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        mine = [node]
        for before in node.all_input_nodes:
            if before in group and group[before] is not mine:
                mine = [*group[before], *(n for n in mine if n not in group[before])]
                group.update(dict.fromkeys(mine, mine))
        group.update(dict.fromkeys(mine, mine))
    return list({id(g): g for g in group.values()}.values())


def leaves_group(node: fx.Node, group: set[fx.Node]) -> bool:
    """Whether a floating-point tensor goes from here to calls outside."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and any(u not in group for u in node.users)


@torch.no_grad()
def evaluated(module: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, Any]:
    """What the calls compute, in float64 and eval mode."""
    values: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in values:  # a parameter or buffer
            entry: Any = module
            for part in str(node.target).split("."):
                entry = getattr(entry, part)
            constant = not isinstance(entry, Tensor) or str(node.target).startswith(CONSTANT)
            values[node] = entry if constant else widened(entry.detach().clone())
        return values[node]

    for node in nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        with Double():
            match node.op:
                case "call_function":
                    values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
                case "call_method":
                    values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                case _:
                    values[node] = in_double(deep_copy(module.get_submodule(str(node.target)))).eval()(*args, **kwargs)
    return values


def replaced(traced: Traced, chosen: set[str], inside: list[fx.Node]) -> Traced:
    """The traced network with a parameter `computed_NODE.weight` in the place of each chosen call of those inside."""
    root, graph = traced.module, traced.module.graph
    values = evaluated(root, inside)
    exact = {}
    for node in [n for n in inside if n.name in chosen]:
        name, holder, like = node.name, nn.Module(), node.meta["val"]
        holder.register_parameter("weight", nn.Parameter(values[node].to(like.dtype)))
        root.add_module(f"computed_{name}", holder)
        exact[f"computed_{name}.weight"] = values[node]
        with graph.inserting_before(node):
            fetched = graph.get_attr(f"computed_{name}.weight")
        fetched.meta["val"] = like
        node.replace_all_uses_with(fetched, delete_user_cb=lambda user: user not in inside)
    for node in reversed(inside):
        if not node.users:
            graph.erase_node(node)
    erase_unread(graph, modules_by_path(root, every=True))
    module = Recorded(root, graph, type(root).__name__)
    return replace(traced, module=module, computed=exact)
