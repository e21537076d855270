"""How much of the signal that an output receives each of its connections carries (arXiv 2109.10795)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@torch.no_grad()
def inputs_of(network: nn.Module, paths: Iterable[str], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Path of a layer -> mean of |x| over the samples that reach it: (inputs,) of a linear layer, over positions too,
    (C, *positions) of a convolution."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def look(path: str, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0].detach().abs()
        x = x.flatten(0, -2) if isinstance(layer, nn.Linear) else x
        sums[path] = sums.get(path, 0) + x.sum(0)
        counts[path] = counts.get(path, 0) + len(x)

    handles = [network.get_submodule(path).register_forward_pre_hook(partial(look, path)) for path in paths]
    try:
        for inputs in batches:
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: total / counts[path] for path, total in sums.items()}


@torch.no_grad()
def connection_strengths(layer: Any, signal: Tensor, over_positions: str) -> Tensor:
    """(outputs, inputs), inputs per group of a convolution; where the layer has a bias, its size is the last column.

    Linear: |w| * signal. Convolution: of the map that |kernel| makes of the signal of its input, the L2 norm over
    positions or, with `over_positions` "sum", the sum.
    """
    weight = layer.weight.detach().abs()
    if isinstance(layer, nn.Linear):
        strengths = weight * signal
    else:
        columns = [_maps(layer, weight, signal, index).flatten(1) for index in range(weight.shape[1])]
        strengths = torch.stack([m.sum(1) if over_positions == "sum" else m.norm(dim=1) for m in columns], 1)
    return strengths if layer.bias is None else torch.cat([strengths, layer.bias.detach().abs().unsqueeze(1)], 1)


def _maps(layer: Any, weight: Tensor, signal: Tensor, index: int) -> Tensor:
    """(outputs, *positions): of each output, from the input with this index in its group."""
    outputs, inputs = weight.shape[:2]
    group = torch.arange(outputs, device=weight.device) // (outputs // layer.groups)
    x, padding = signal[group * inputs + index].unsqueeze(0), layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    convolution = CONVOLUTIONS[weight.ndim]
    maps: Tensor = convolution(x, weight[:, index : index + 1], None, layer.stride, padding, layer.dilation, outputs)
    return maps[0]


def fewest_carrying(strengths: Tensor, alpha: float) -> Tensor:
    """bool of the shape (outputs, connections): of each output the shortest run of its strongest connections whose sum
    is at least alpha of all; none of an output that receives nothing."""
    ordered, order = strengths.sort(dim=1, descending=True, stable=True)
    before = ordered.double().cumsum(1) - ordered  # of the stronger ones
    keep = (before < alpha * ordered.double().sum(1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(keep).scatter(1, order, keep)
