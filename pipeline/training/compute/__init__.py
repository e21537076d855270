"""How a step is computed: number format, memory layout, compilation, and with which other processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.training.compute.distributed import ALONE, Ranks

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    device: torch.device
    amp: str = "none"
    channels_last: bool = False
    compile: bool = False
    ranks: Ranks = ALONE
    joins: bool = True
    """Whether gradients are averaged over the processes here; else by a loop of one's own."""

    def placed(self, network: nn.Module) -> nn.Module:
        """The network on the device, in the memory layout asked for."""
        network = network.to(self.device)
        if self.channels_last:
            for parameter in network.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return network

    def images(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def forward_of(self, network: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Any]:
        """What to call in training: joined with other processes, compiled; `example`: inputs, at least 2 samples."""
        called = self.ranks.joined(network, self.device, example) if self.joins else network
        return torch.compile(called) if self.compile else called

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass runs in here."""
        return nullcontext() if self.amp == "none" else torch.autocast(self.device.type, FORMATS[self.amp])

    def scaler(self) -> torch.amp.GradScaler | None:
        """fp16 has too few exponents for small gradients; bf16 has those of fp32."""
        return torch.amp.GradScaler(self.device.type) if self.amp == "fp16" else None


def compute_of(section: config.Training, device: torch.device, ranks: Ranks) -> Compute:
    return Compute(device, section.amp, section.channels_last, section.compile, ranks)
