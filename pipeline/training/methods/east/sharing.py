"""Blocks that share weights: in each stage the third block and those after it compute with the convolutions of the
second, each times a scalar of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.masks import in_scope

OWNER = 1  # place of the block in its stage whose weights the later ones use


class SharedConv2d(nn.Module):
    """A convolution with another's weight times `scale`; its bias, if it has one, is its own."""

    def __init__(self, like: nn.Conv2d, weight: nn.Parameter, scale: Tensor) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = weight, nn.Parameter(scale), like.bias
        self.form: dict[str, Any] = {
            "stride": like.stride, "padding": like.padding, "dilation": like.dilation, "groups": like.groups,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * self.scale, self.bias, **self.form)

    def own(self) -> nn.Conv2d:
        """The same convolution with a weight of its own."""
        outputs, inputs, *kernel = self.weight.shape
        size = (kernel[0], kernel[1])
        layer = nn.Conv2d(inputs * self.form["groups"], outputs, size, bias=self.bias is not None, **self.form)
        layer = layer.to(self.weight.device, self.weight.dtype).train(self.training)
        with torch.no_grad():
            layer.weight.copy_(self.weight * self.scale)
        layer.bias = self.bias
        return layer


def sharers(network: nn.Module) -> dict[str, str]:
    """Path of each convolution that is to share -> path of the one whose weight it uses. Stages are `nn.Sequential`s of
    blocks; a block shares where its type, and the names and shapes of its convolutions, are those of the second."""
    pairs: dict[str, str] = {}
    scope = in_scope(network)
    for path, stage in network.named_modules():
        blocks = list(stage.named_children()) if isinstance(stage, nn.Sequential) else []
        if len(blocks) <= OWNER + 1:
            continue
        owner_name, owner = blocks[OWNER]
        form = _convolutions(owner)
        for name, block in blocks[OWNER + 1 :]:
            if "" in form or not form or type(block) is not type(owner) or _convolutions(block) != form:
                continue
            for inner in form:
                at = ".".join(filter(None, (path, name, inner)))
                of = ".".join(filter(None, (path, owner_name, inner)))
                if f"{at}.weight" in scope and f"{of}.weight" in scope:
                    pairs[at] = of
    return pairs


def _convolutions(block: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {
        name: (m.weight.shape, m.stride, m.padding, m.dilation, m.groups)
        for name, m in block.named_modules()
        if type(m) is nn.Conv2d and m.padding_mode == "zeros"
    }
