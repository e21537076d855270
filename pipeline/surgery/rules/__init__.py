"""Which rule covers a node: literal tables by module type, function and method name."""

from __future__ import annotations

from torch import Tensor, fx, nn

from pipeline.surgery.analysis import Analysis, Rule, describe, leaves
from pipeline.surgery.copies import own_values
from pipeline.surgery.rules import (
    aliases,
    convolution,
    elementwise,
    indexing,
    layers,
    mixing,
    movement,
    norms,
    pieces,
    plain,
    reductions,
    reshaping,
    residual,
    resizing,
    statistics,
)
from pipeline.surgery.tracer import PATH_DROPS

MODULES: dict[type[nn.Module], Rule] = {
    **layers.MODULES, **convolution.MODULES, **norms.MODULES, **statistics.MODULES, **elementwise.MODULES,
    **reshaping.MODULES, **resizing.MODULES, **reductions.MODULES,
}  # fmt: skip
FUNCTIONS: dict[str, Rule] = {
    **plain.FUNCTIONS, **elementwise.FUNCTIONS, **movement.FUNCTIONS, **reshaping.FUNCTIONS, **resizing.FUNCTIONS,
    **pieces.FUNCTIONS, **indexing.FUNCTIONS, **mixing.FUNCTIONS, **reductions.FUNCTIONS, **layers.FUNCTIONS,
    **convolution.FUNCTIONS, **norms.FUNCTIONS, **statistics.FUNCTIONS, **residual.FUNCTIONS,
}  # fmt: skip


def rule_for(a: Analysis, node: fx.Node) -> Rule | None:
    """The rule of a node, or None. Functions and methods of one name are one operation."""
    if aliases.overwritten(a, node):
        return aliases.frozen
    match node.op:
        case "placeholder":
            return plain.placeholder
        case "output":
            return plain.output
        case "get_attr":
            return plain.get_attr
        case "call_module":
            module = a.module(node)
            if not _plain(module):
                return None
            return elementwise.same if type(module).__name__ in PATH_DROPS else MODULES.get(type(module))
    name = describe(a, node)
    if not any(leaves(a.env[n]) for n in node.all_input_nodes):
        return plain.number
    return FUNCTIONS.get(name) or FUNCTIONS.get(name.rstrip("_"))


def _plain(module: nn.Module) -> bool:
    """No hooks and no computed weights: calling it does what its type says."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    computed = "parametrizations" in module._modules or any(
        isinstance(v, Tensor) and not isinstance(v, nn.Parameter) for v in own_values(module)
    )
    return not hooked and not computed
