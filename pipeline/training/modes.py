"""Modules that a network keeps in eval mode while it trains, e.g. frozen batch norms.

A network says so in a `train` of its own, which a network with channels cut out, being a graph, has no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType

from torch import nn


def frozen_in_training(network: nn.Module) -> frozenset[str]:
    """Names of the modules that stay in eval mode under `network.train()`; the network is left as it was."""
    if all(type(module).train is nn.Module.train for module in network.modules()):
        return frozenset()
    before = modes_of(network)
    network.train()
    frozen = frozenset(name for name, module in network.named_modules() if not module.training)
    network.train(before[""])  # by its own `train`, which may do more than to set modes
    put_modes(network, before)
    return frozen


def train_mode(network: nn.Module, frozen: frozenset[str]) -> nn.Module:
    """`network.train()`, the `frozen` ones left in eval mode."""
    network.train()
    for name, module in network.named_modules():
        if name in frozen:
            module.eval()
    return network


def modes_of(network: nn.Module) -> dict[str, bool]:
    """Name of each module -> whether it trains."""
    return {name: module.training for name, module in network.named_modules()}


def put_modes(network: nn.Module, modes: Mapping[str, bool]) -> None:
    """Modules that had no name before are as the network is."""
    for name, module in network.named_modules():
        module.training = modes.get(name, modes[""])


def keep_frozen(network: nn.Module, frozen: frozenset[str]) -> None:
    """Let `network.train()` leave these modules in eval mode, as the `train` of the first network did."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        type(self).train(self, mode)
        for name, module in self.named_modules():
            if name in frozen:
                type(module).train(module, False)
        return self

    if frozen and type(network).train is nn.Module.train:
        network.__dict__["train"] = MethodType(train, network)
