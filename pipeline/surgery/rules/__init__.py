"""Which rule covers a node: literal tables by module type, function and method name."""

from __future__ import annotations

from dataclasses import is_dataclass

from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis, Rule, describe, leaves
from pipeline.surgery.rules import aliases, elementwise
from pipeline.surgery.rules import inputs as plain
from pipeline.surgery.rules import matmul as mixing
from pipeline.surgery.rules import reduce as reductions
from pipeline.surgery.rules.layers import batch_norm as norms
from pipeline.surgery.rules.layers import convolution
from pipeline.surgery.rules.layers import layer_norm as statistics
from pipeline.surgery.rules.layers import linear as layers
from pipeline.surgery.rules.moves import index as indexing
from pipeline.surgery.rules.moves import permute as movement
from pipeline.surgery.rules.moves import pixel_pad as resizing
from pipeline.surgery.rules.moves import reshape as reshaping
from pipeline.surgery.rules.moves import split_concat as pieces
from pipeline.surgery.trace.copies import own_values
from pipeline.surgery.trace.tracer import PATH_DROPS

MODULES: dict[type[nn.Module], Rule] = {
    **layers.MODULES, **convolution.MODULES, **norms.MODULES, **statistics.MODULES, **elementwise.MODULES,
    **reshaping.MODULES, **resizing.MODULES, **reductions.MODULES,
}  # fmt: skip
FUNCTIONS: dict[str, Rule] = {
    **plain.FUNCTIONS, **elementwise.FUNCTIONS, **movement.FUNCTIONS, **reshaping.FUNCTIONS, **resizing.FUNCTIONS,
    **pieces.FUNCTIONS, **indexing.FUNCTIONS, **mixing.FUNCTIONS, **reductions.FUNCTIONS, **layers.FUNCTIONS,
    **convolution.FUNCTIONS, **norms.FUNCTIONS, **statistics.FUNCTIONS,
}  # fmt: skip


def rule_for(a: Analysis, node: fx.Node) -> Rule | None:
    """The rule of a node, or None. Functions and methods of one name are one operation."""
    if aliases.overwritten(a, node):
        return aliases.frozen
    own = of_user(a, node)
    if own is not None:
        return own
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
    if isinstance(node.target, type) and (is_dataclass(node.target) or hasattr(node.target, "_fields")):
        return plain.answer
    name = describe(a, node)
    if not any(leaves(a.env[n]) for n in node.all_input_nodes):
        return plain.number
    return FUNCTIONS.get(name) or FUNCTIONS.get(name.rstrip("_"))


def of_user(a: Analysis, node: fx.Node) -> Rule | None:
    """The user's own rule for a call: by function, name of a method, or type of a module."""
    rules = a.traced.rules
    if not rules or not node.op.startswith("call_"):
        return None
    rule: Rule | None = rules.get(type(a.module(node)) if node.op == "call_module" else node.target)
    return rule


def _plain(module: nn.Module) -> bool:
    """No hooks and no computed weights: calling it does what its type says."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    computed = "parametrizations" in module._modules or any(
        isinstance(v, Tensor) and not isinstance(v, nn.Parameter) for v in own_values(module)
    )
    return not hooked and not computed
