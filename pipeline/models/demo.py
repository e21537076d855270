"""The demo network: a small residual network for small grey images such as the 8x8 digits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import UserError


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + skip(x)); the skip is the identity where the shape allows."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.skip = nn.Sequential()
        if stride != 1 or inputs != width:
            self.skip = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        z: Tensor = self.relu2(y + self.skip(x))
        return z


class ResNet(nn.Module):
    """(N, C, H, W) -> (N, num_classes): a stem and three stages of `width`, 2 `width` and 4 `width` channels.

    The first block of the later stages halves the image and projects its skip; all other skips are identities.
    """

    def __init__(self, channels: int, num_classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width << stage
            first = [Block(inputs, outputs, 1 if stage == 0 else 2)]
            stages.append(nn.Sequential(*first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


def resnet(*, num_classes: int, input_shape: tuple[int, int, int], width: int = 32, blocks: int = 1) -> ResNet:
    """`blocks` residual blocks a stage; the default has seven 3x3 convolutions of 32-32-32-64-64-128-128 channels."""
    if width < 1 or blocks < 1:
        raise UserError(
            f"model.args of demo:resnet are width {width}, blocks {blocks}", "both at least 1", "raise them"
        )
    return ResNet(input_shape[0], num_classes, width, blocks)
