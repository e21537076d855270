"""Another network that shares all but some modules with the one before."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn


def replaced(network: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """The network with these modules in the place of those at their paths; the first stays as it is. Parameters of the
    others are the same objects, which an optimizer knows; buffers are copies."""
    if not modules:
        return network
    memo: dict[int, Any] = {id(p): p for p in network.parameters()}
    memo |= {id(network.get_submodule(path)): module for path, module in modules.items()}
    return copy.deepcopy(network, memo)
