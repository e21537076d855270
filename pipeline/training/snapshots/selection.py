"""Which weights a training leaves: averaged ones, and those of its best epoch, chosen on the validation split."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data import Dataset
from pipeline.training.hooks import Hooks, same_network
from runtime.errors import UserError

AVERAGE, BEST = "demport.average|", "demport.best|"
"""Before the names of tensors in a checkpoint."""
WARM_UP = 10
"""The decay at step t is at most (1 + t) / (10 + t), so that the weights of the start are soon forgotten."""


def demand_selection(section: config.Training, data: Dataset, hooks: Hooks) -> None:
    """UserError where nothing could be chosen on, or nothing says from when on networks can be compared."""
    asked = {
        "ema": section.ema is not None,
        "best_epoch": section.best_epoch,
        "patience": section.patience is not None,
    }
    key = next((key for key, value in asked.items() if value), None)
    chooses = section.best_epoch or section.patience is not None
    if chooses and data.validation is None:
        problem = f"{'best_epoch' if section.best_epoch else 'patience'}, and no validation split to choose on"
        raise UserError(problem, "images beside the test split, which judges", "set data.validation, e.g. 0.1")
    if not isinstance(section, config.Sparse) or key is None:
        return
    if hooks.steps is not None or hooks.build is not same_network:
        problem = f"sparse.{key} with the method {section.method}, which goes back, or changes the network, on the way"
        raise UserError(problem, "a method that trains one network", f"leave sparse.{key} out")
    if chooses and section.asked is None:
        key = "best_epoch" if section.best_epoch else "patience"
        problem = f"sparse.{key} with the method {section.method} and no target: nothing says when channels are gone"
        raise UserError(problem, "a target, after which epochs are compared", "set sparse.target, e.g. {macs: 0.5}")


def averaged_copy(network: nn.Module) -> nn.Module:
    """The average as it begins: in eval mode, without gradients."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """average = d average + (1 - d) network, d the smaller of `decay` and (1 + step) / (10 + step), batch statistics
    too; counters are taken over. An entry that is exactly 0 in the network, as held channels and masked weights are, is
    0 in the average."""
    share = 1 - min(decay, (1 + step) / (WARM_UP + step))
    own, other = ([p.detach() for p in each.parameters()] for each in (average, network))
    torch._foreach_lerp_(own, other, share)
    torch._foreach_mul_(own, [(p != 0).to(p.dtype) for p in other])
    for mean, buffer in zip(average.buffers(), network.buffers(), strict=True):
        if buffer.is_floating_point():
            mean.lerp_(buffer, share)
        else:
            mean.copy_(buffer)


@dataclass
class Selection:
    """The best epoch so far among those that can be compared: after the last removal, and after a target is reached."""

    section: config.Training
    steps: int
    """Of the whole training."""
    epoch: int | None = None
    value: float = -1.0
    since: int = 0
    """Epochs since the best one."""
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.section.best_epoch or self.section.patience is not None

    @property
    def stops(self) -> bool:
        """Whether as many epochs as `patience` have brought nothing better."""
        return self.section.patience is not None and self.since >= self.section.patience

    def removed(self) -> None:
        """The network has other channels from here on."""
        self.epoch, self.value, self.since, self.tensors = None, -1.0, 0, {}

    def offer(self, epoch: int, step: int, value: float, network: nn.Module) -> None:
        """The weights after an epoch, after so many steps; equal to the best counts as no better."""
        target = self.section.asked if isinstance(self.section, config.Sparse) else None
        if not self.active or (target is not None and step < target.reached_at * self.steps):
            return
        if value > self.value:
            self.epoch, self.value, self.since = epoch, value, 0
            self.tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        else:
            self.since += 1

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps: tensors and plain JSON."""
        tensors = {f"{BEST}{name}": tensor for name, tensor in self.tensors.items()}
        return tensors, {"epoch": self.epoch, "value": self.value, "since": self.since}

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave."""
        self.epoch, self.value, self.since = record["epoch"], float(record["value"]), int(record["since"])
        self.tensors = named(tensors, BEST)


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
