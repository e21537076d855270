"""Small networks that carry their own answers: the shapes left after surgery, parameters and MACs, worked out by hand.

Figures are written as the sums they are. MACs are those of convolutions, linear maps and matrix products, for one
image (batch 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Oracle:
    """`shapes`: parameter name -> shape after the cut. `frozen`: reasons beside "output of the network"."""

    model: nn.Module
    example: tuple[Tensor, ...]
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    macs: int
    frozen: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


class Net(nn.Module):
    """Named layers and a forward of one line."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def net(forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> Any:
    """A network in eval mode with seeded weights and running statistics far from their defaults."""
    return awaken(Net(forward, **layers)).eval()


def awaken(model: Any, seed: int = 0) -> Any:
    """Random weights of variance 1 / fan-in, norm scales in [0.5, 1.5), and random running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if not p.is_floating_point():
                continue
            if p.dim() > 1:
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("running_var", "weight")):
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(0, 0.3, generator=generator)
    return model


@torch.no_grad()
def still(layer: Any, channels: Iterable[int], value: float = 0.0) -> None:
    """Let these output channels be `value` for every input: zero scale (or weights), and the bias."""
    at = list(channels)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    layer.weight[(slice(None), at) if transposed else at] = 0.0
    if layer.bias is not None:
        layer.bias[at] = value
    else:
        assert value == 0.0


def conv(ins: int, outs: int, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, kernel, **{"padding": kernel // 2, "bias": False, **more})


def image(channels: int = 3, size: int = 8, batch: int = 2) -> tuple[Tensor, ...]:
    return (torch.randn((batch, channels, size, size), generator=torch.Generator().manual_seed(7)),)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def plain() -> Oracle:
    model = net(
        lambda m, x: m.fc(pooled(F.relu(m.conv2(F.relu(m.bn(m.conv1(x))))))),
        conv1=conv(3, 8), bn=nn.BatchNorm2d(8), conv2=conv(8, 6, bias=True), fc=nn.Linear(6, 4),
    )  # fmt: skip
    still(model.bn, (1, 4, 6), -0.2)
    still(model.conv2, (0, 3))
    return Oracle(
        model, image(),
        {"conv1.weight": (5, 3, 3, 3), "bn.running_mean": (5,), "conv2.weight": (4, 5, 3, 3), "fc.weight": (4, 4)},
        3 * 5 * 9 + 2 * 5 + (5 * 4 * 9 + 4) + (4 * 4 + 4), 64 * 3 * 5 * 9 + 64 * 5 * 4 * 9 + 4 * 4,
    )  # fmt: skip


def none_dead() -> Oracle:
    model = net(
        lambda m, x: m.fc(pooled(F.relu(m.bn(m.conv(x))))), conv=conv(3, 8), bn=nn.BatchNorm2d(8), fc=nn.Linear(8, 4)
    )
    shapes: dict[str, tuple[int, ...]] = {"conv.weight": (8, 3, 3, 3), "bn.weight": (8,), "fc.weight": (4, 8)}
    return Oracle(model, image(), shapes, 3 * 8 * 9 + 2 * 8 + (8 * 4 + 4), 64 * 3 * 8 * 9 + 8 * 4)


def all_dead() -> Oracle:
    """One channel stays in each layer; the answer is a constant."""
    model = net(
        lambda m, x: m.fc(pooled(F.relu(m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x)))))))),
        conv1=conv(3, 8), bn1=nn.BatchNorm2d(8), conv2=conv(8, 6), bn2=nn.BatchNorm2d(6), fc=nn.Linear(6, 4),
    )  # fmt: skip
    still(model.bn1, range(8), -0.1)
    still(model.bn2, range(6))
    return Oracle(
        model, image(), {"conv1.weight": (1, 3, 3, 3), "conv2.weight": (1, 1, 3, 3), "fc.weight": (4, 1)},
        3 * 9 + 2 + 9 + 2 + (4 + 4), 64 * 3 * 9 + 64 * 9 + 4,
    )  # fmt: skip


def constant_under_padding() -> Oracle:
    """Channels that are 0.7 and not 0: at the border a padded convolution sees fewer of them, so they become ones."""
    model = net(
        lambda m, x: pooled(m.conv2(F.relu(m.bn(m.conv1(x))))), conv1=conv(3, 8), bn=nn.BatchNorm2d(8), conv2=conv(8, 5)
    )
    still(model.bn, (2, 5), 0.7)
    still(model.bn, (3,), -0.7)
    return Oracle(
        model, image(), {"conv1.weight": (5, 3, 3, 3), "conv2.weight": (5, 6, 3, 3)},
        3 * 5 * 9 + 2 * 5 + 6 * 5 * 9, 64 * 3 * 5 * 9 + 64 * 6 * 5 * 9,
    )  # fmt: skip


def constant_without_padding() -> Oracle:
    """The same channels before unpadded convolutions: one that has a bias, one that gains one, then a linear map."""
    model = net(
        lambda m, x: m.fc(pooled(F.relu(m.bn2(m.conv3(F.relu(m.bn(m.conv2(F.relu(m.conv1(x))))))))).clone()),
        conv1=conv(3, 4, bias=True), conv2=conv(4, 8, padding=0, bias=True), bn=nn.BatchNorm2d(8),
        conv3=conv(8, 6, 1), bn2=nn.BatchNorm2d(6), fc=nn.Linear(6, 4),
    )  # fmt: skip
    still(model.conv1, (1,), 0.4)
    still(model.bn, (2, 5), 0.7)
    still(model.bn2, (0,), 0.3)
    return Oracle(
        model, image(),
        {"conv1.weight": (3, 3, 3, 3), "conv2.weight": (6, 3, 3, 3), "conv3.weight": (5, 6, 1, 1),
        "conv3.bias": (5,), "fc.weight": (4, 5)},
        (3 * 3 * 9 + 3) + (3 * 6 * 9 + 6) + 2 * 6 + (6 * 5 + 5) + 2 * 5 + (5 * 4 + 4),
        64 * 3 * 3 * 9 + 36 * 3 * 6 * 9 + 36 * 6 * 5 + 5 * 4, folded=("conv2", "conv3", "fc"),
    )  # fmt: skip


def residual() -> Oracle:
    """A channel of the stream goes only if it is dead at every member: 1 and 3 are, 0 and 5 are not."""
    model = net(
        _residual, stem=conv(3, 8), bn0=nn.BatchNorm2d(8), conv1=conv(8, 6), bn1=nn.BatchNorm2d(6),
        conv2=conv(6, 8), bn2=nn.BatchNorm2d(8), fc=nn.Linear(8, 4),
    )  # fmt: skip
    still(model.bn0, (0, 1, 3), -0.1)
    still(model.bn2, (1, 3, 5), -0.1)
    still(model.bn1, (2, 4, 5))
    return Oracle(
        model, image(),
        {"stem.weight": (6, 3, 3, 3), "conv1.weight": (3, 6, 3, 3), "conv2.weight": (6, 3, 3, 3), "fc.weight": (4, 6)},
        3 * 6 * 9 + 2 * 6 + 6 * 3 * 9 + 2 * 3 + 3 * 6 * 9 + 2 * 6 + (6 * 4 + 4),
        64 * 9 * (3 * 6 + 6 * 3 + 3 * 6) + 6 * 4,
    )  # fmt: skip


def _residual(m: Any, x: Tensor) -> Any:
    x = F.relu(m.bn0(m.stem(x)))
    y = m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x)))))
    y += x
    return m.fc(pooled(F.relu(y, inplace=True)))


def bottleneck() -> Oracle:
    """1x1, 3x3 of stride 2, 1x1 beside a projection of stride 2: stream of 12, of which 2 are dead on both sides."""
    layers: dict[str, nn.Module] = {
        "a": conv(4, 6, 1),
        "bn_a": nn.BatchNorm2d(6),
        "b": conv(6, 6, stride=2),
        "bn_b": nn.BatchNorm2d(6),
    }
    layers |= {
        "c": conv(6, 12, 1),
        "bn_c": nn.BatchNorm2d(12),
        "p": conv(4, 12, 1, stride=2),
        "bn_p": nn.BatchNorm2d(12),
    }
    model = net(_bottleneck, **layers, fc=nn.Linear(12, 3))
    still(model.bn_a, (0, 1))
    still(model.bn_b, (3, 4, 5), -1)
    still(model.bn_c, (2, 7, 8), -0.5)
    still(model.bn_p, (2, 7, 9))
    return Oracle(
        model, image(4),
        {"a.weight": (4, 4, 1, 1), "b.weight": (3, 4, 3, 3), "c.weight": (10, 3, 1, 1), "p.weight": (10, 4, 1, 1),
        "fc.weight": (3, 10)},
        4 * 4 + 8 + 4 * 3 * 9 + 6 + 3 * 10 + 20 + 4 * 10 + 20 + (10 * 3 + 3),
        64 * 4 * 4 + 16 * (4 * 3 * 9 + 3 * 10 + 4 * 10) + 10 * 3,
    )  # fmt: skip


def _bottleneck(m: Any, x: Tensor) -> Any:
    y = F.relu(m.bn_b(m.b(F.relu(m.bn_a(m.a(x))))))
    return m.fc(pooled(F.relu(m.bn_c(m.c(y)) + m.bn_p(m.p(x)))))


def concat() -> Oracle:
    model = net(
        lambda m, x: pooled(m.last(torch.cat([F.relu(m.bn_a(m.a(x))), x, F.relu(m.bn_b(m.b(x)))], 1))),
        a=conv(3, 5), bn_a=nn.BatchNorm2d(5), b=conv(3, 6, 1), bn_b=nn.BatchNorm2d(6), last=conv(14, 4),
    )  # fmt: skip
    still(model.bn_a, (0, 4))
    still(model.bn_b, (1, 2, 3), -0.3)
    return Oracle(
        model, image(), {"a.weight": (3, 3, 3, 3), "b.weight": (3, 3, 1, 1), "last.weight": (4, 9, 3, 3)},
        3 * 3 * 9 + 6 + 3 * 3 + 6 + 9 * 4 * 9, 64 * (3 * 3 * 9 + 3 * 3 + 9 * 4 * 9), frozen=(),
    )  # fmt: skip


def split() -> Oracle:
    """Chunks of 4 and 4 become 3 and 2; only the first goes through another convolution."""
    model = net(
        _split, stem=conv(3, 8), bn=nn.BatchNorm2d(8), side=conv(4, 5, 1), bn2=nn.BatchNorm2d(5), last=conv(9, 4, 1)
    )
    still(model.bn, (1, 4, 6))
    still(model.bn2, (0,))
    return Oracle(
        model, image(), {"stem.weight": (5, 3, 3, 3), "side.weight": (4, 3, 1, 1), "last.weight": (4, 6, 1, 1)},
        3 * 5 * 9 + 10 + 3 * 4 + 8 + 6 * 4, 64 * (3 * 5 * 9 + 3 * 4 + 6 * 4),
    )  # fmt: skip


def _split(m: Any, x: Tensor) -> Any:
    left, right = F.relu(m.bn(m.stem(x))).chunk(2, dim=1)
    return pooled(m.last(torch.cat([F.relu(m.bn2(m.side(left))), right], 1)))


def depthwise() -> Oracle:
    """Expand, depthwise, project: a channel dies at the expansion (0, 1) or at the depthwise norm (1, 5)."""
    model = net(
        lambda m, x: pooled(m.project(F.relu6(m.bn2(m.depth(F.relu6(m.bn1(m.expand(x)))))))),
        expand=conv(3, 8, 1), bn1=nn.BatchNorm2d(8), depth=conv(8, 8, groups=8), bn2=nn.BatchNorm2d(8),
        project=conv(8, 4, 1),
    )  # fmt: skip
    still(model.bn1, (0, 1), -0.5)
    still(model.bn2, (1, 5), -0.5)
    with torch.no_grad():
        model.bn2.bias[0], model.bn2.running_mean[0] = -0.4, 0.1  # 0 reaches it, it makes a negative constant
        model.bn2.weight[0] = 0.7
    return Oracle(
        model, image(), {"expand.weight": (5, 3, 1, 1), "depth.weight": (5, 1, 3, 3), "project.weight": (4, 5, 1, 1)},
        3 * 5 + 10 + 5 * 9 + 10 + 5 * 4, 64 * (3 * 5 + 5 * 9 + 5 * 4),
    )  # fmt: skip


def grouped() -> Oracle:
    """Two groups of 4 -> 4: inputs 0, 1 | 6 are dead, so each group keeps 3; outputs 2 | 4, 7 are, each keeps 3."""
    model = net(
        lambda m, x: pooled(m.last(F.relu(m.bn2(m.mid(F.relu(m.bn1(m.stem(x)))))))),
        stem=conv(3, 8), bn1=nn.BatchNorm2d(8), mid=conv(8, 8, groups=2), bn2=nn.BatchNorm2d(8), last=conv(8, 3, 1),
    )  # fmt: skip
    still(model.bn1, (0, 1, 6))
    still(model.bn2, (2, 4, 7))
    return Oracle(
        model, image(), {"stem.weight": (6, 3, 3, 3), "mid.weight": (6, 3, 3, 3), "last.weight": (3, 6, 1, 1)},
        3 * 6 * 9 + 12 + 6 * 3 * 9 + 12 + 6 * 3, 64 * (3 * 6 * 9 + 6 * 3 * 9 + 6 * 3),
    )  # fmt: skip


ALL: tuple[Callable[[], Oracle], ...] = (
    plain, none_dead, all_dead, constant_under_padding, constant_without_padding, residual, bottleneck, concat, split,
    depthwise, grouped,
)  # fmt: skip


class Free(nn.Module):
    """A parameter for each channel, multiplied in and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias
