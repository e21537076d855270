"""A network whose answers are those that a task names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn


def answering(network: nn.Module, named: Callable[[Any], Any]) -> nn.Module:
    """The network with `named` after its forward: a copy that shares parameters, buffers and submodules under the names
    they have, so that graphs exported from it name their weights alike. The network itself stays as it is."""
    forward = type(network).forward

    def answer(self: nn.Module, x: Tensor) -> Any:
        return named(forward(self, x))

    def copied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        return answering(copy.deepcopy(network, memo), named)  # a traced network would copy its graph alone

    kind = type(network)
    methods = {"forward": answer, "__deepcopy__": copied, "__module__": kind.__module__}
    # torch.export takes the graph of a traced network, not its forward: the clone of one is a plain module
    base = nn.Module if isinstance(network, fx.GraphModule) else kind
    clone: nn.Module = object.__new__(type(kind.__name__, (base,), methods))
    clone.__dict__.update(network.__dict__)
    return clone
