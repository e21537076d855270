"""Parameters, multiply-accumulates and denormal weights of a torch network."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def params(module: nn.Module) -> int:
    """Numbers in all parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def denormals(module: nn.Module) -> int:
    """Numbers in parameters and buffers that are not zero and smaller than their type's smallest normal number."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return sum(int(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).sum()) for t in tensors)


def macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one image of `input_shape` (C, H, W): convolutions, matrix products and attention.

    Half of what torch.utils.flop_counter counts, which takes two operations for each. Additions of biases,
    normalisation and activations are left out, as is usual. Run in eval mode on the module's own device; its mode is
    put back.
    """
    was_training = module.training
    first = next(module.parameters(), torch.zeros(()))
    image = torch.zeros((1, *input_shape), dtype=first.dtype, device=first.device)
    counter = FlopCounterMode(display=False)
    module.eval()
    try:
        with torch.no_grad(), counter:
            module(image)
    finally:
        module.train(was_training)
    return int(counter.get_total_flops()) // 2
