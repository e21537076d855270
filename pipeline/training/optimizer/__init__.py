"""SGD and AdamW, both with decoupled weight decay (arXiv 1711.05101): p *= 1 - lr * weight_decay before the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    def step(
        self, lr: float, scaler: torch.amp.GradScaler | None = None, first: Callable[[], None] = lambda: None
    ) -> bool:
        """One step, and True; with a scaler, where a gradient is not finite: only a lower scale, and False. `first` is
        called when the gradients are unscaled and finite, as far as there is a scaler."""
        for group in self.inner.param_groups:
            group["lr"] = lr
        if scaler is None:
            first()
            self._decay(lr)
            self.inner.step()
            return True
        scaler.unscale_(self.inner)
        largest = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None], float("inf"))
        finite = bool(torch.isfinite(torch.stack(largest)).all())
        if finite:  # else not even called: torch's fused kernels would leave their moments as empty memory
            first()
            self._decay(lr)
            scaler.step(self.inner)
        scaler.update()
        return finite

    def following(self, before: nn.Module, network: nn.Module) -> Optimizer:
        """The same over another network in the place of the one before: its new parameters join the first group, those
        that are gone leave with their state."""
        gone = {id(p) for p in before.parameters()} - {id(p) for p in network.parameters()}
        for group in self.inner.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for p in [p for p in self.inner.state if id(p) in gone]:
            del self.inner.state[p]
        present = {id(p) for group in self.inner.param_groups for p in group["params"]}
        new = [p for p in network.parameters() if p.requires_grad and id(p) not in present]
        self.inner.param_groups[0]["params"] += new
        return over(self, self.inner)

    def _decay(self, lr: float) -> None:
        if self.decay:
            torch._foreach_mul_(self.parameters, 1.0 - lr * self.decay)


def optimizer_for(section: config.Training, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """sgd: v = momentum v + g, p -= lr v. adamw: betas 0.9 and 0.999, eps 1e-8."""
    own = tuple(parameters)
    if section.optimizer == "adamw":
        return Optimizer(torch.optim.AdamW(own, section.lr, weight_decay=section.weight_decay, fused=True), own, 0.0)
    return Optimizer(torch.optim.SGD(own, section.lr, momentum=section.momentum, fused=True), own, section.weight_decay)


def over(before: Optimizer, inner: torch.optim.Optimizer) -> Optimizer:
    """The same, over an optimizer that a removal made."""
    return Optimizer(inner, tuple(p for group in inner.param_groups for p in group["params"]), before.decay)
