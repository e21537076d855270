"""A small U-Net (Ronneberger et al., arXiv 1505.04597) for small images: a class for each pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import UserError


class Double(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        y: Tensor = self.relu2(self.bn2(self.conv2(x)))
        return y


class UNet(nn.Module):
    """(N, C, H, W) -> (N, num_classes, H, W); widths `width`, 2 `width`, 4 `width` at 1/2, 1/4 and 1/8 of the side."""

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.down1 = Double(channels, width, 2)
        self.down2 = Double(width, 2 * width, 2)
        self.middle = Double(2 * width, 4 * width, 2)
        self.up2 = Double(4 * width + 2 * width, 2 * width)
        self.up1 = Double(2 * width + width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(first)
        y = F.interpolate(self.middle(second), size=second.shape[2:])
        y = self.up2(torch.cat([y, second], 1))
        y = F.interpolate(y, size=first.shape[2:])
        y = self.head(self.up1(torch.cat([y, first], 1)))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear")


def unet(*, num_classes: int, input_shape: tuple[int, int, int], width: int = 16) -> UNet:
    """Ten 3x3 convolutions."""
    if width < 1:
        raise UserError(f"model.args of demo:unet has width {width}", "1 or more", "raise it")
    return UNet(input_shape[0], num_classes, width)
