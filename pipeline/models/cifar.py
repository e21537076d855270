"""The networks of the CIFAR literature, for images of 32x32 (larger ones work too)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.demo import Block

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
InputShape = tuple[int, int, int]


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 with the stride, 1x1 to four times as many; as in He et al. (2015), section 4.1."""

    WIDER = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.WIDER * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.skip = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        z: Tensor = self.relu3(self.bn3(self.conv3(y)) + self.skip(x))
        return z


class ResNet(nn.Module):
    """Four stages of `blocks` blocks, `width` to 8 `width` channels (in the middle of bottlenecks); 3x3 stem of stride
    1, no max-pool, projected skips.

    With two plain blocks each and width 64 its ReLUs put out 3,904 channels: the network of the DemP paper
    (arXiv 2403.07688).
    """

    def __init__(
        self, block: type[Block | Bottleneck], blocks: tuple[int, ...], channels: int, num_classes: int, width: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        wider = Bottleneck.WIDER if block is Bottleneck else 1
        inputs, stages = width, []
        for k, count in enumerate(blocks):
            stage: list[nn.Module] = []
            for number in range(count):
                stage.append(block(inputs, width << k, 2 if k and not number else 1))
                inputs = wider * width << k
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


class PaddedSkip(nn.Module):
    """Option A of He et al. (2015): every `stride`-th pixel, and zero channels added on both sides up to `outputs`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        assert (outputs - inputs) % 2 == 0, (inputs, outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))


class ThinBlock(nn.Module):
    """A block whose skip has no parameters."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Sequential() if inputs == width and stride == 1 else PaddedSkip(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        z: Tensor = self.relu2(y + self.shortcut(x))
        return z


class ThinResNet(nn.Module):
    """ResNet-(6n+2) of He et al. (2015), section 4.2: three stages of n blocks, `width` to 4 `width` channels."""

    def __init__(self, channels: int, num_classes: int, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        widths = [width, width, 2 * width, 4 * width]
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                ThinBlock(widths[k], widths[k + 1], 1 if k == 0 else 2),
                *(ThinBlock(widths[k + 1], widths[k + 1], 1) for _ in range(blocks - 1)),
            )
            for k in range(3)
        )
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


class Vgg16(nn.Module):
    """The 13 convolutions of VGG-16 with batch norm, then two hidden linear layers of `hidden` features.

    Five halvings: images of at least 32x32; what is left is flattened.
    """

    def __init__(self, input_shape: InputShape, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = input_shape[0]
        for width in VGG16:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        flat = channels * (input_shape[1] // 32) * (input_shape[2] // 32)
        head: list[nn.Module] = []
        for inputs in (flat, hidden):
            head += [nn.Linear(inputs, hidden), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.classifier = nn.Sequential(*head, nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


def resnet18(*, num_classes: int, input_shape: InputShape, width: int = 64) -> nn.Module:
    return ResNet(Block, (2, 2, 2, 2), input_shape[0], num_classes, width)


def resnet50(*, num_classes: int, input_shape: InputShape, width: int = 64) -> nn.Module:
    return ResNet(Bottleneck, (3, 4, 6, 3), input_shape[0], num_classes, width)


def resnet20(*, num_classes: int, input_shape: InputShape, width: int = 16) -> nn.Module:
    return ThinResNet(input_shape[0], num_classes, 3, width)


def resnet56(*, num_classes: int, input_shape: InputShape, width: int = 16) -> nn.Module:
    return ThinResNet(input_shape[0], num_classes, 9, width)


def vgg16_bn(*, num_classes: int, input_shape: InputShape, hidden: int = 4096, dropout: float = 0.0) -> nn.Module:
    return Vgg16(input_shape, num_classes, hidden, dropout)
