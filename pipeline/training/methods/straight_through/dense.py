"""Dense weights behind masked ones: forward and backward with w * mask, the optimizer's step on w.

The network holds the masked weights except while the optimizer steps, so every evaluation, checkpoint and the end see
what is deployed; the gradient of the masked weights is taken for that of the dense ones (straight through).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipeline.training.masks import in_scope
from pipeline.training.state import TrainState


class Dense:
    """`weights`: parameter name -> what the optimizer moves; is carried with the network."""

    def __init__(self, network: nn.Module, names: list[str], mask: Callable[[str, Tensor], Tensor]) -> None:
        """`mask`: (name, dense weights) -> bool of their shape, from what the method knows now."""
        named = in_scope(network)
        self.weights = {name: named[name].detach().clone() for name in names}
        self._mask = mask
        self._parameters: dict[str, nn.Parameter] = {}

    def begin(self, state: TrainState) -> None:
        """Act on this network from now on, whose weights are dense or masked."""
        named = dict(state.network.named_parameters())
        self._parameters = {name: named[name] for name in self.weights}
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.mul_(self._mask(name, p))

    @torch.no_grad()
    def before_step(self, gradient: Callable[[str, Tensor, Tensor], Tensor]) -> None:
        """`gradient`: (name, dense weights, gradient of the masked ones) -> gradient of the dense ones."""
        for name, p in self._parameters.items():
            if p.grad is not None:
                p.grad.copy_(gradient(name, self.weights[name], p.grad))
            p.copy_(self.weights[name])

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimizer has moved the dense weights."""
        for name, p in self._parameters.items():
            self.weights[name].copy_(p)
            p.mul_(self._mask(name, p))

    @torch.no_grad()
    def restore(self) -> None:
        """The network's weights from the dense ones, which came from a checkpoint."""
        for name, p in self._parameters.items():
            dense = self.weights[name]
            p.copy_(dense * self._mask(name, dense))

    def living(self) -> Mapping[str, Tensor]:
        """Name -> mask in force."""
        return {name: self._mask(name, dense) for name, dense in self.weights.items()}
