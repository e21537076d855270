"""Networks of torchvision and timm with known weights, some of whose channels are dead by their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Constructors leave weights as memory has them: `fill` writes every one of them."""
    with ExitStack() as stack:
        for function in dir(nn.init):
            if function.endswith("_") and not function.startswith("_"):
                stack.enter_context(mock.patch.object(nn.init, function, lambda tensor, *_, **__: tensor))
        yield


@torch.no_grad()
def fill(model: nn.Module, example: Tensor, seed: int = 0) -> nn.Module:
    """Weights of mean square 1.5 / fan-in, norms near 1, everything else within 0.2; in eval mode.

    Running statistics are those of two random images, for else activations can grow until rounding is all they are.
    """
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) and name == "weight":
                p.uniform_(0.5, 1.5, generator=g)
            elif p.dim() > 1 and p[0].numel() > 0:
                p.normal_(0.0, (1.5 / p[0].numel()) ** 0.5, generator=g)
            else:
                p.uniform_(-0.2, 0.2, generator=g)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momentum = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
    if norms:
        model.train()(torch.randn((2, *example.shape[1:]), generator=g))
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return model.eval()


@torch.no_grad()
def kill(model: nn.Module, classes: int, seed: int = 1) -> nn.Module:
    """Zero output channels of every layer that has them: those whose index ends in 2, 5 or 8, so that the layers of a
    residual stream agree, and a tenth drawn for each layer."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, *NORMS)):
            continue
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        width = module.out_channels if isinstance(module, nn.modules.conv._ConvNd) else weight.shape[0]
        if width in (1, classes):
            continue
        dead = every_third(width) | (torch.rand(width, generator=g) < 0.1)
        for p in module.parameters(recurse=False):
            if p.shape[0] == width:
                p[dead] = 0.0
    return model


def every_third(width: int) -> Tensor:
    return torch.tensor([i % 10 in (2, 5, 8) for i in range(width)])
