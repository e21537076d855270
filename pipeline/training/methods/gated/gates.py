"""Gates: a number for each channel that what it puts out is multiplied by, while the network trains.

A gate acts where a channel is complete and nothing has mixed it yet: behind the batch norm that follows the layer, else
behind the layer. In front of a ReLU that is the same as behind it. The gates of channels that go together are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.training.steering.channels import Channels, Site


class Gates:
    """`trained` (count,) float: in training mode, `judged`: in eval mode; both may be written in place."""

    def __init__(self, channels: Channels, network: nn.Module) -> None:
        device = next(network.parameters()).device
        self.trained = torch.ones(channels.costs.count, device=device)
        self.judged = torch.ones(channels.costs.count, device=device)
        self._handles: list[RemovableHandle] = []
        self._channels, self._network = channels, network

    def attach(self) -> None:
        """Until `detach`, which has to come before surgery looks at the network: it would take gates for a part."""
        modules = dict(self._network.named_modules())
        for site in self._channels.sites:
            self._handles.append(modules[site.module].register_forward_hook(self._gate(site)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def attached(self) -> Iterator[None]:
        self.attach()
        try:
            yield
        finally:
            self.detach()

    def _gate(self, site: Site) -> Any:
        index = torch.as_tensor(site.classes, device=self.trained.device)

        def gate(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            gates = (self.trained if module.training else self.judged)[index].to(output.dtype)
            return output * gates.view([-1 if axis == site.axis % output.dim() else 1 for axis in range(output.dim())])

        return gate
