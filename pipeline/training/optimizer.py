"""SGD and AdamW, both with decoupled weight decay (arXiv 1711.05101): p *= 1 - lr * weight_decay before the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline import config


@dataclass(frozen=True)
class Optimizer:
    inner: torch.optim.Optimizer
    parameters: tuple[nn.Parameter, ...]
    decay: float
    """Weight decay that `inner` does not do itself; on all parameters."""

    def zero_grad(self) -> None:
        self.inner.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = lr
        if self.decay:
            torch._foreach_mul_(self.parameters, 1.0 - lr * self.decay)
        self.inner.step()


def optimizer_for(section: config.Training, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """sgd: v = momentum v + g, p -= lr v. adamw: betas 0.9 and 0.999, eps 1e-8."""
    own = tuple(parameters)
    if section.optimizer == "adamw":
        return Optimizer(torch.optim.AdamW(own, section.lr, weight_decay=section.weight_decay, fused=True), own, 0.0)
    return Optimizer(torch.optim.SGD(own, section.lr, momentum=section.momentum, fused=True), own, section.weight_decay)
