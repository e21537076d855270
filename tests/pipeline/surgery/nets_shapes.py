"""Oracle networks whose channels are moved, joined, tied or held fast: see nets.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pipeline.surgery.nets import Oracle, conv, image, net, pooled, still


def shuffle() -> Oracle:
    """View (N, 2, 4), transpose, flatten, then chunks: rows 0-3 and 4-7 interleave to 0 4 1 5 | 2 6 3 7.

    1, 2 and 4, 6 are dead: each row keeps two, 0 3 and 5 7, which interleave to 0 5 | 3 7.
    """
    model = net(_shuffle, stem=conv(3, 8), bn=nn.BatchNorm2d(8), left=conv(4, 3, 1), right=conv(4, 3, 1))
    still(model.bn, (1, 2, 4, 6))
    return Oracle(
        model, image(), {"stem.weight": (4, 3, 3, 3), "left.weight": (3, 2, 1, 1), "right.weight": (3, 2, 1, 1)},
        3 * 4 * 9 + 8 + 2 * 3 + 2 * 3, 64 * (3 * 4 * 9 + 2 * 3 + 2 * 3),
    )  # fmt: skip


def torn_shuffle() -> Oracle:
    """0, 1, 4 and 7 are dead: 2 3 and 5 6 interleave to 2 5 3 6, but 5 belongs to one chunk, 2 3 6 to the other."""
    model = net(_shuffle, stem=conv(3, 8), bn=nn.BatchNorm2d(8), left=conv(4, 3, 1), right=conv(4, 3, 1))
    still(model.bn, (0, 1, 4, 7))
    return Oracle(
        model, image(), {"stem.weight": (4, 3, 3, 3), "left.weight": (3, 1, 1, 1), "right.weight": (3, 3, 1, 1)},
        3 * 4 * 9 + 8 + 1 * 3 + 3 * 3, 64 * (3 * 4 * 9 + 1 * 3 + 3 * 3),
    )  # fmt: skip


def _shuffle(m: Any, x: Tensor) -> Any:
    x = F.relu(m.bn(m.stem(x)))
    n, c, h, w = x.size()
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
    a, b = x.chunk(2, 1)
    return pooled(m.left(a) - m.right(b))


def squeeze_excite() -> Oracle:
    """The gate of a dead channel goes with it; the squeezed layer loses one of its own."""
    model = net(
        _squeeze_excite, stem=conv(3, 8), bn=nn.BatchNorm2d(8), fc1=conv(8, 4, 1, bias=True),
        fc2=conv(4, 8, 1, bias=True),
        last=conv(8, 5, 1),
    )  # fmt: skip
    still(model.bn, (2, 3, 6))
    still(model.fc1, (1,))
    return Oracle(
        model, image(),
        {"stem.weight": (5, 3, 3, 3), "fc1.weight": (3, 5, 1, 1), "fc2.weight": (5, 3, 1, 1), "fc2.bias": (5,),
        "last.weight": (5, 5, 1, 1)},
        3 * 5 * 9 + 10 + (5 * 3 + 3) + (3 * 5 + 5) + 5 * 5, 64 * 3 * 5 * 9 + 5 * 3 + 3 * 5 + 64 * 5 * 5,
    )  # fmt: skip


def _squeeze_excite(m: Any, x: Tensor) -> Any:
    x = F.relu(m.bn(m.stem(x)))
    gate = torch.sigmoid(m.fc2(F.relu(m.fc1(F.adaptive_avg_pool2d(x, 1)))))
    return pooled(m.last(x * gate))


def flatten() -> Oracle:
    """8 channels of 4 x 4 pixels into a linear map: three dead channels are 48 of its columns."""
    model = net(
        lambda m, x: m.fc2(F.relu(m.fc1(torch.flatten(F.max_pool2d(F.relu(m.bn(m.stem(x))), 2), 1)))),
        stem=conv(3, 8), bn=nn.BatchNorm2d(8), fc1=nn.Linear(128, 6), fc2=nn.Linear(6, 3),
    )  # fmt: skip
    still(model.bn, (0, 5, 7))
    still(model.fc1, (2, 3))
    return Oracle(
        model, image(), {"stem.weight": (5, 3, 3, 3), "fc1.weight": (4, 80), "fc2.weight": (3, 4)},
        3 * 5 * 9 + 10 + (80 * 4 + 4) + (4 * 3 + 3), 64 * 3 * 5 * 9 + 80 * 4 + 4 * 3,
    )  # fmt: skip


def shared_module() -> Oracle:
    """One convolution called twice: what it makes is what it takes, so both norms and the stem must lose a channel."""
    model = net(
        lambda m, x: pooled(F.relu(m.bn2(m.conv(F.relu(m.bn1(m.conv(F.relu(m.bn0(m.stem(x)))))))))),
        stem=conv(3, 8), bn0=nn.BatchNorm2d(8), conv=conv(8, 8), bn1=nn.BatchNorm2d(8), bn2=nn.BatchNorm2d(8),
    )  # fmt: skip
    model.fc = nn.Linear(8, 2)
    forward = model._forward
    model._forward = lambda m, x: m.fc(forward(m, x))
    still(model.bn0, (0, 1, 2))
    still(model.bn1, (1, 2, 3))
    still(model.bn2, (1, 2, 4))
    return Oracle(
        model, image(), {"stem.weight": (6, 3, 3, 3), "conv.weight": (6, 6, 3, 3), "fc.weight": (2, 6)},
        3 * 6 * 9 + 6 * 6 * 9 + 3 * 12 + (6 * 2 + 2), 64 * 9 * (3 * 6 + 2 * 6 * 6) + 6 * 2,
    )  # fmt: skip


def prelu() -> Oracle:
    """A slope a channel; 2 is zero before it, 4 is a negative constant and stays constant (folded)."""
    model = net(
        lambda m, x: m.fc(pooled(m.act(m.bn(m.stem(x))))),
        stem=conv(3, 6), bn=nn.BatchNorm2d(6), act=nn.PReLU(6), fc=nn.Linear(6, 4),
    )  # fmt: skip
    still(model.bn, (2,))
    still(model.bn, (4,), -0.8)
    return Oracle(
        model, image(), {"stem.weight": (4, 3, 3, 3), "act.weight": (4,), "fc.weight": (4, 4)},
        3 * 4 * 9 + 8 + 4 + (4 * 4 + 4), 64 * 3 * 4 * 9 + 4 * 4, folded=("fc",),
    )  # fmt: skip


def transposed() -> Oracle:
    """Weights (in, out, 2, 2), then a grouped transposed one of 2 groups 3 -> 2: inputs 0 | 4 go, outputs 1 | 2."""
    model = net(
        lambda m, x: pooled(m.last(F.relu(m.bn2(m.up2(F.relu(m.bn1(m.up1(F.relu(m.stem(x)))))))))),
        stem=conv(3, 5, bias=True), up1=nn.ConvTranspose2d(5, 6, 2, stride=2, bias=False), bn1=nn.BatchNorm2d(6),
        up2=nn.ConvTranspose2d(6, 4, 3, padding=1, groups=2), bn2=nn.BatchNorm2d(4), last=conv(4, 3, 1),
    )  # fmt: skip
    still(model.stem, (1, 3))
    still(model.bn1, (0, 4))
    still(model.bn2, (1, 2))
    return Oracle(
        model, image(), {"up1.weight": (3, 4, 2, 2), "up2.weight": (4, 1, 3, 3), "up2.bias": (2,),
        "last.weight": (3, 2, 1, 1)},
        (3 * 3 * 9 + 3) + 3 * 4 * 4 + 8 + (4 * 1 * 9 + 2) + 4 + 2 * 3,
        64 * 3 * 3 * 9 + 64 * 3 * 4 * 4 + 256 * 4 * 1 * 9 + 256 * 2 * 3,
    )  # fmt: skip


def option_a() -> Oracle:
    """A shortcut that skips every other pixel and pads zero channels (2 before, 2 after the 4): ResNet for CIFAR.

    Stem 1 is dead, and the block's 3, which it is added to: both go. 0 and 7 are dead in the block and padded: gone.
    """
    model = net(
        _option_a,
        stem=conv(3, 4),
        bn0=nn.BatchNorm2d(4),
        a=conv(4, 8, stride=2),
        bn1=nn.BatchNorm2d(8),
        fc=nn.Linear(8, 3),
    )
    still(model.bn0, (1, 2))
    still(model.bn1, (0, 3, 7))
    return Oracle(
        model, image(), {"stem.weight": (3, 3, 3, 3), "a.weight": (5, 3, 3, 3), "fc.weight": (3, 5)},
        3 * 3 * 9 + 6 + 3 * 5 * 9 + 10 + (5 * 3 + 3), 64 * 3 * 3 * 9 + 16 * 3 * 5 * 9 + 5 * 3,
    )  # fmt: skip


def _option_a(m: Any, x: Tensor) -> Any:
    x = F.relu(m.bn0(m.stem(x)))
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    return m.fc(pooled(F.relu(m.bn1(m.a(x)) + short)))


def pixel_shuffle() -> Oracle:
    """Four channels make one: 0-3 are all dead and go, of 4-7 only two are and stay, of 8-11 none."""
    model = net(
        lambda m, x: pooled(m.last(F.pixel_shuffle(F.relu(m.bn(m.stem(x))), 2))),
        stem=conv(3, 12), bn=nn.BatchNorm2d(12), last=conv(3, 4),
    )  # fmt: skip
    still(model.bn, (0, 1, 2, 3, 5, 6))
    return Oracle(
        model, image(), {"stem.weight": (8, 3, 3, 3), "last.weight": (4, 2, 3, 3)},
        3 * 8 * 9 + 16 + 2 * 4 * 9, 64 * 3 * 8 * 9 + 256 * 2 * 4 * 9,
    )  # fmt: skip


def pixel_unshuffle() -> Oracle:
    model = net(
        lambda m, x: pooled(m.last(m.down(F.relu(m.bn(m.stem(x)))))),
        stem=conv(3, 5), bn=nn.BatchNorm2d(5), down=nn.PixelUnshuffle(2), last=conv(20, 4, 1),
    )  # fmt: skip
    still(model.bn, (0, 3))
    return Oracle(
        model, image(), {"stem.weight": (3, 3, 3, 3), "last.weight": (4, 12, 1, 1)},
        3 * 3 * 9 + 6 + 12 * 4, 64 * 3 * 3 * 9 + 16 * 12 * 4,
    )  # fmt: skip


def stack_unbind() -> Oracle:
    """Two branches stacked on a new axis, summed over it and taken apart again: a channel goes where dead in both."""
    model = net(_stack, a=conv(3, 6), bn_a=nn.BatchNorm2d(6), b=conv(3, 6), bn_b=nn.BatchNorm2d(6), last=conv(6, 4, 1))
    still(model.bn_a, (0, 1, 2))
    still(model.bn_b, (1, 2, 3))
    return Oracle(
        model, image(), {"a.weight": (4, 3, 3, 3), "b.weight": (4, 3, 3, 3), "last.weight": (4, 4, 1, 1)},
        2 * (3 * 4 * 9 + 8) + 4 * 4, 64 * (2 * 3 * 4 * 9 + 4 * 4),
    )  # fmt: skip


def _stack(m: Any, x: Tensor) -> Any:
    both = torch.stack([F.relu(m.bn_a(m.a(x))), F.relu(m.bn_b(m.b(x)))], dim=1)
    first, second = both.unbind(1)
    return pooled(m.last(both.sum(1) + first * second))


def unet() -> Oracle:
    """Down by pooling, up by interpolation, and a skip joined on."""
    model = net(_unet, enc=conv(3, 6), bn1=nn.BatchNorm2d(6), mid=conv(6, 8), bn2=nn.BatchNorm2d(8), dec=conv(14, 4))
    still(model.bn1, (0, 5))
    still(model.bn2, (1, 2, 7))
    return Oracle(
        model, image(), {"enc.weight": (4, 3, 3, 3), "mid.weight": (5, 4, 3, 3), "dec.weight": (4, 9, 3, 3)},
        3 * 4 * 9 + 8 + 4 * 5 * 9 + 10 + 9 * 4 * 9, 64 * 3 * 4 * 9 + 16 * 4 * 5 * 9 + 64 * 9 * 4 * 9,
    )  # fmt: skip


def _unet(m: Any, x: Tensor) -> Any:
    skip = F.relu(m.bn1(m.enc(x)))
    deep = F.relu(m.bn2(m.mid(F.avg_pool2d(skip, 2))))
    up = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
    return m.dec(torch.cat((skip, up), dim=1))


ALL: tuple[Callable[[], Oracle], ...] = (
    shuffle, torn_shuffle, squeeze_excite, flatten, shared_module, prelu, transposed, option_a, pixel_shuffle,
    pixel_unshuffle,
    stack_unbind, unet,
)  # fmt: skip
