"""Keeps training steps away from a kernel of oneDNN that writes past its memory.

On processors without AVX-512 oneDNN's weight gradient of a 1x1 convolution that strides over fewer than 8 channels,
laid out (N, H, W, C) in memory, corrupts the heap, hangs or is wrong (https://github.com/uxlfoundation/oneDNN/issues/6035;
seen with torch 2.15.0). torch chooses that layout by itself where images have one channel. DemP makes such layers, so
a network that has one takes its steps without oneDNN: slower, and right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_BLOCK = 8  # channels that the kernel takes at once


def writes_past(network: nn.Module) -> bool:
    """Whether a training step of the network on this machine's CPU would call the broken kernel."""
    if "AVX512" in torch.backends.cpu.get_cpu_capability():
        return False
    return any(_strides_over_few(m) for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd))


def _strides_over_few(conv: nn.modules.conv._ConvNd) -> bool:
    strides = math.prod(conv.kernel_size) == 1 and math.prod(conv.stride) > 1
    return strides and conv.in_channels // conv.groups < _BLOCK


@contextmanager
def without_onednn() -> Iterator[None]:
    """torch's own convolutions, forward and backward, while it lasts."""
    before: Any = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
