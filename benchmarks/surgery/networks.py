"""Classification networks of torchvision with random weights, and with three channels in ten dead.

The dead are always those whose index ends in 2, 5 or 8. So layers of one width agree, as the members of a residual
stream must.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor, nn

SIDE = 224
CLASSES = 1000


def dead_indices(width: int) -> Tensor:
    """Which of `width` channels are dead, bool (width,)."""
    return torch.tensor([i % 10 in (2, 5, 8) for i in range(width)])


def build(name: str) -> nn.Module:
    """A torchvision classification network in eval mode with random weights whose activations stay near 1."""
    from torchvision.models import get_model

    more = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with without_initialisation():
        model = get_model(name, **more).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            fill(module)
        if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
            settle(model)
    return model  # type: ignore[no-any-return]


@contextlib.contextmanager
def without_initialisation() -> Iterator[None]:
    """Constructors leave weights as they are in memory: filling those of the largest networks takes half a minute."""
    with contextlib.ExitStack() as stack:
        for function in dir(nn.init):
            if function.endswith("_") and not function.startswith("_"):
                stack.enter_context(mock.patch.object(nn.init, function, lambda tensor, *_, **__: tensor))
        yield


def fill(module: nn.Module) -> None:
    """Weights of mean square 2 / fan-in, norms near 1, everything else small."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("weight") and parameter.dim() > 1:
            parameter.normal_(0.0, (2.0 / parameter[0].numel()) ** 0.5)
        elif name == "weight":
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.uniform_(-0.1, 0.1)


def settle(model: nn.Module, *inputs: Tensor) -> None:
    """Running statistics as a small random batch has them, so that no layer swamps the next."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    momentum = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(*inputs or (torch.randn(2, 3, SIDE, SIDE),))
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
        norm.eval()


@torch.no_grad()
def kill(model: nn.Module) -> None:
    """Zero what makes the dead channels: rows of weights, scales and shifts, and the embeddings of tokens."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.shape[0] in (1, CLASSES):
                continue  # one channel, or the classes
            if name in ("in_proj_weight", "in_proj_bias"):
                parameter[dead_indices(parameter.shape[0] // 3).repeat(3)] = 0.0
            elif name in ("weight", "bias"):
                parameter[dead_indices(parameter.shape[0])] = 0.0
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("class_token", "pos_embedding"):
            parameter[..., dead_indices(parameter.shape[-1])] = 0.0
