"""Parameters, multiply-accumulates and denormal weights of a torch network."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def params(module: nn.Module) -> int:
    """Numbers in all parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def denormals(module: nn.Module) -> int:
    """Numbers in parameters and buffers that are not zero and smaller than their type's smallest normal number."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return sum(int(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).sum()) for t in tensors)


def macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one image of `input_shape` (C, H, W), on the module's own device; see `macs_of`."""
    first = next(module.parameters(), torch.zeros(()))
    return macs_of(module, (torch.zeros((1, *input_shape), dtype=first.dtype, device=first.device),))


def macs_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Multiply-accumulates of the first sample of `inputs`: convolutions, matrix products and attention.

    Half of what torch.utils.flop_counter counts, which takes two operations for each. Additions of biases,
    normalisation and activations are left out, as is usual. Run in eval mode, which is put back.
    """
    was_training, fast = module.training, torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel that is not counted, as that of attention on a CPU
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(*(x[:1] for x in inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        module.train(was_training)
    return int(counter.get_total_flops()) // 2
