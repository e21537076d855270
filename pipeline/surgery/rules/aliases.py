"""Calls that overwrite memory which another tensor, read later, looks at: what no graph of values can express."""

from __future__ import annotations

from torch import fx

from pipeline.surgery.channels.analysis import Analysis, Result, describe, opaque
from pipeline.surgery.trace import in_place
from pipeline.surgery.trace.tracer import PATH_DROPS

VIEWS = frozenset(
    (
        "getitem view reshape permute transpose swapaxes swapdims t squeeze unsqueeze flatten unflatten chunk split "
        "unbind tensor_split split_with_sizes narrow select expand expand_as view_as detach contiguous getattr to type "
        "type_as float double half bfloat16 dropout Identity Dropout Dropout1d Dropout2d Dropout3d Flatten Unflatten"
    ).split()
)
SEEN = "overwritten"  # fx.Graph attribute: the tensors found


def overwritten(a: Analysis, node: fx.Node) -> bool:
    """Whether the memory of `node` is overwritten through a view, and one of its views is read after that."""
    graph = node.graph
    if not hasattr(graph, SEEN):
        setattr(graph, SEEN, _overwritten(a, graph))
    nodes: set[fx.Node] = getattr(graph, SEEN)
    return node in nodes


def frozen(a: Analysis, node: fx.Node) -> Result:
    return opaque(a, node, "overwritten through a view")


def _overwritten(a: Analysis, graph: fx.Graph) -> set[fx.Node]:
    order = {n: i for i, n in enumerate(graph.nodes)}
    nodes: set[fx.Node] = set()
    for node in graph.nodes:
        if in_place(node, a.modules) and node.args and isinstance(node.args[0], fx.Node):
            family = _family(a, node.args[0], node)
            if any(order[u] > order[node] for n in family for u in n.users):
                nodes |= family
    return nodes


def _family(a: Analysis, start: fx.Node, result: fx.Node) -> set[fx.Node]:
    """Every tensor that shares memory with `start`, but for what is read from `result`, the call that overwrites."""
    family, todo = {start}, [start]
    while todo:
        n = todo.pop()
        near = [u for u in n.users if u is not result and _views(a, u) and u.args[0] is n]
        if _views(a, n) and isinstance(n.args[0], fx.Node):
            near.append(n.args[0])
        todo += [m for m in near if m not in family]
        family.update(near)
    return family


def _views(a: Analysis, node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method", "call_module") or not node.args:
        return False
    name = describe(a, node)
    return name in VIEWS or name in PATH_DROPS or in_place(node, a.modules)
