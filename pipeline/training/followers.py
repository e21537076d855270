"""What stands around a network in a loop of one's own: its optimizer, averages of it, a teacher, other processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from runtime.errors import UserError


def joined() -> bool:
    """Whether this process trains with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def demand_plain(model: nn.Module, optimizer: Any) -> None:
    """Raises UserError for a wrapped network, and for what are not optimizers over its parameters, each in one."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        inside = "_orig_mod" if hasattr(model, "_orig_mod") else "module"
        raise UserError(
            f"model is wrapped ({type(model).__name__})", "the network inside, which is wrapped again after a removal",
            f"give model.{inside}, and wrap sparse.network",
        )  # fmt: skip
    each = optimizer if isinstance(optimizer, list | tuple) and optimizer else (optimizer,)
    own, held = {id(p) for p in model.parameters()}, set[int]()
    for one in each:
        if not isinstance(one, torch.optim.Optimizer):
            raise UserError(
                f"optimizer is {type(one).__name__}", "an optimizer of torch, or a list of them",
                "give those that step the network's parameters",
            )  # fmt: skip
        mine = {id(p) for group in one.param_groups for p in group["params"]}
        if not mine & own:
            raise UserError(
                "the optimizer holds no parameter of the network", "an optimizer over network.parameters()",
                "make it over this network, after moving it to its device",
            )  # fmt: skip
        if mine & held:
            raise UserError("two optimizers hold one parameter", "each in one of them", "divide them")
        held |= mine


def taught(teacher: nn.Module, model: nn.Module) -> nn.Module:
    """The teacher in eval mode; a copy where it is, or shares parameters with, the network that is trained."""
    own = {id(p) for p in model.parameters()}
    shares = any(id(p) in own for p in teacher.parameters())
    return (copy.deepcopy(teacher) if shares else teacher).eval()


def average_of(network: nn.Module, first: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """An average of the form of `first` over a copy of this network, with these values."""
    inner = copy.deepcopy(network)
    fresh = copy.deepcopy(first, {id(first.module): inner}) if isinstance(first, AveragedModel) else inner
    fresh.load_state_dict(values)
    return fresh


def overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a scaler has told a fused optimizer to make no step."""
    flag = getattr(optimizer, "found_inf", None)
    return isinstance(flag, Tensor) and bool(flag)


@torch.no_grad()
def unscale(optimizer: torch.optim.Optimizer) -> None:
    """Gradients that a fused optimizer would unscale while it makes its step, at once: methods look at them."""
    scale = getattr(optimizer, "grad_scale", None)
    if isinstance(scale, Tensor):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, float(1 / scale))
        optimizer.grad_scale = None  # type: ignore[attr-defined]


def over_names(optimizer: torch.optim.Optimizer, before: nn.Module, network: nn.Module) -> torch.optim.Optimizer:
    """The same kind of optimizer, without state, over the parameters of the same names."""
    after, names = dict(network.named_parameters()), {id(p): name for name, p in before.named_parameters()}
    own = {id(p): after.get(name) for name, p in before.named_parameters()}
    gone = {id(p) for p in before.parameters() if own[id(p)] is None}
    memo: dict[int, Any] = {place: p for place, p in own.items() if p is not None}
    memo |= {id(p): p for group in optimizer.param_groups for p in group["params"] if id(p) not in names}
    other = copy.deepcopy(optimizer, memo)
    for old, group in zip(optimizer.param_groups, other.param_groups, strict=True):
        pairs = zip(old["params"], group["params"], strict=True)
        group["params"] = [p for before_p, p in pairs if id(before_p) not in gone]
    other.state.clear()
    return other
