"""Oracle networks of linear maps, norms over channels, attention, free parameters and the unknown: see nets.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pipeline.surgery.nets import Oracle, conv, image, net, pooled, still


def tokens(width: int = 8, length: int = 5, batch: int = 2) -> tuple[Tensor, ...]:
    return (torch.randn((batch, length, width), generator=torch.Generator().manual_seed(7)),)


def layer_norm() -> Oracle:
    """A channel goes if it is zero before the norm (embed) and after it: 1 and 6, but not 2 (before) nor 3 (after)."""
    model = net(
        lambda m, x: m.head(m.norm(m.embed(x)).mean(1)),
        embed=nn.Linear(4, 8),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    )
    still(model.embed, (1, 2, 6))
    still(model.norm, (1, 3, 6))
    return Oracle(
        model, tokens(4), {"embed.weight": (6, 4), "norm.weight": (6,), "head.weight": (3, 6)},
        (4 * 6 + 6) + 12 + (6 * 3 + 3), 5 * 4 * 6 + 6 * 3,
    )  # fmt: skip


def group_norm() -> Oracle:
    """Two groups of 4; zero on both sides are 0, 1 | 5, so each group loses one."""
    model = net(
        lambda m, x: pooled(m.last(F.relu(m.norm(m.stem(x))))),
        stem=conv(3, 8, bias=True), norm=nn.GroupNorm(2, 8), last=conv(8, 4, 1),
    )  # fmt: skip
    still(model.stem, (0, 1, 5))
    still(model.norm, (0, 1, 5, 7))
    return Oracle(
        model, image(), {"stem.weight": (6, 3, 3, 3), "norm.weight": (6,), "last.weight": (4, 6, 1, 1)},
        (3 * 6 * 9 + 6) + 12 + 6 * 4, 64 * (3 * 6 * 9 + 6 * 4),
    )  # fmt: skip


def instance_norm() -> Oracle:
    """A channel alone: a constant becomes its bias, whatever the constant."""
    model = net(
        lambda m, x: pooled(m.last(F.relu(m.norm(m.stem(x))))),
        stem=conv(3, 6, padding=0, bias=True), norm=nn.InstanceNorm2d(6, affine=True), last=conv(6, 4, 1),
    )  # fmt: skip
    still(model.stem, (0, 1), 0.9)
    with torch.no_grad():
        model.norm.bias[0], model.norm.bias[1] = -0.4, 0.6  # the second is folded: a 1x1 convolution has no border
    still(model.norm, (5,))
    return Oracle(
        model, image(), {"stem.weight": (3, 3, 3, 3), "norm.weight": (3,), "last.weight": (4, 3, 1, 1),
        "last.bias": (4,)},
        (3 * 3 * 9 + 3) + 6 + (3 * 4 + 4), 36 * (3 * 3 * 9 + 3 * 4), folded=("last",),
    )  # fmt: skip


class Attention(nn.Module):
    """Multi-head attention as timm writes it, its sizes baked in as numbers."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Any:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.dim**-0.5) @ k.transpose(-2, -1)
        return self.proj((attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, length, width))


def attention() -> Oracle:
    """2 heads of 4. q of dims 0, 1 | 4, k of 2 | 5, 6 are dead, so head 0 can lose 0 1 2 and head 1 4 5 6 of both.

    Of v, 3 | 5 and 7 are dead: each head loses one. The code holds q, k and v in one tensor (3, heads, dims), so all
    keep 3 dims a head. `proj` keeps what it makes but for 0, which the embedding does not make either.
    """
    model = net(_attending, embed=nn.Linear(4, 8), block=Attention(8, 2), head=nn.Linear(8, 3))
    for dims, offset in (((0, 1, 4), 0), ((2, 5, 6), 8), ((3, 5, 7), 16)):
        still(model.block.qkv, [offset + d for d in dims])
    still(model.embed, (0, 1))
    still(model.block.proj, (0, 2))
    return Oracle(
        model, tokens(4), {"embed.weight": (7, 4), "block.qkv.weight": (18, 7), "block.proj.weight": (7, 6)},
        (4 * 7 + 7) + (7 * 18 + 18) + (6 * 7 + 7) + (7 * 3 + 3),
        5 * 4 * 7 + 5 * 7 * 18 + 2 * (25 * 3 + 25 * 3) + 5 * 6 * 7 + 7 * 3,
    )  # fmt: skip


def _attending(m: Any, x: Tensor) -> Any:
    x = m.embed(x)
    return m.head((x + m.block(x)).mean(1))


def multihead_attention() -> Oracle:
    """`nn.MultiheadAttention` and the hidden units of an MLP. q, k and v are apart: q and k keep 1 dim a head, v 3."""
    model = net(
        _encoder, embed=nn.Linear(4, 8), block=nn.MultiheadAttention(8, 2, batch_first=True), fc1=nn.Linear(8, 12),
        fc2=nn.Linear(12, 8), head=nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        for dims, offset in (((0, 1, 4), 0), ((2, 5, 6), 8), ((3, 5, 7), 16)):
            rows = [offset + d for d in dims]
            model.block.in_proj_weight[rows] = 0
            model.block.in_proj_bias[rows] = 0
    still(model.fc1, (0, 1, 2, 11))
    return Oracle(
        model, tokens(4),
        {"block.in_proj_weight": (10, 8), "block.out_proj.weight": (8, 6), "fc1.weight": (8, 8), "fc2.weight": (8, 8)},
        (4 * 8 + 8) + (8 * 10 + 10) + (6 * 8 + 8) + 2 * (8 * 8 + 8) + (8 * 3 + 3),
        5 * 4 * 8 + 5 * 8 * 10 + 2 * (25 * 1 + 25 * 3) + 5 * 6 * 8 + 5 * 2 * 64 + 8 * 3,
    )  # fmt: skip


def _encoder(m: Any, x: Tensor) -> Any:
    x = m.embed(x)
    x = x + m.block(x, x, x, need_weights=False)[0]
    return m.head((x + m.fc2(F.gelu(m.fc1(x)))).mean(1))


def layer_scale() -> Oracle:
    """A free parameter a channel, one more per position, and a token joined on; 2 is dead on every path, 5
    by the scale.

    Position and channel are two axes of one parameter; positions never go.
    """
    model = net(
        _scaled, embed=nn.Linear(4, 8), fc=nn.Linear(8, 8), scale=nn.Parameter(torch.zeros(8)),
        place=nn.Parameter(torch.zeros(1, 6, 8)), token=nn.Parameter(torch.zeros(1, 1, 8)), head=nn.Linear(8, 3),
    )  # fmt: skip
    still(model.embed, (2, 5, 7))
    still(model.fc, (2, 6))
    with torch.no_grad():
        model.scale[5] = 0
        model.place[..., [2, 5, 6]] = 0
        model.token[..., [2, 5, 6]] = 0
    return Oracle(
        model, tokens(4), {"embed.weight": (6, 4), "fc.weight": (6, 6), "scale": (6,), "place": (1, 6, 6),
        "token": (1, 1, 6)},
        (4 * 6 + 6) + (6 * 6 + 6) + 6 + 36 + 6 + (6 * 3 + 3), 5 * 4 * 6 + 6 * 6 * 6 + 6 * 3,
    )  # fmt: skip


def _scaled(m: Any, x: Tensor) -> Any:
    x = m.embed(x)
    x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], dim=1) + m.place
    return m.head((x + m.scale * m.fc(x)).mean(1))


def tied_weights() -> Oracle:
    """One weight, two biases: its rows are channels of two tensors, its columns of two more, so 1 and 4 must
    die in all."""
    model = net(
        lambda m, x: m.head(F.relu(m.second(F.relu(m.first(F.relu(m.embed(x))))))).mean(1),
        embed=nn.Linear(4, 8), first=nn.Linear(8, 8), second=nn.Linear(8, 8), head=nn.Linear(8, 3),
    )  # fmt: skip
    model.second.weight = model.first.weight
    still(model.embed, (0, 1, 4))
    still(model.first, (1, 4), -0.1)
    still(model.second, (1, 4), -0.2)
    return Oracle(
        model, tokens(4), {"embed.weight": (6, 4), "first.weight": (6, 6), "second.weight": (6, 6),
        "head.weight": (3, 6)},
        (4 * 6 + 6) + (6 * 6 + 6) + 6 + (6 * 3 + 3), 5 * (4 * 6 + 2 * 6 * 6 + 6 * 3),
    )  # fmt: skip


def tied_to_the_input() -> Oracle:
    """The same without the embedding: the first layer reads the network's input, whose channels cannot go."""
    model = net(
        lambda m, x: m.head(F.relu(m.second(F.relu(m.first(x))))).mean(1),
        first=nn.Linear(8, 8), second=nn.Linear(8, 8), head=nn.Linear(8, 3),
    )  # fmt: skip
    model.second.weight = model.first.weight
    still(model.first, (1, 4))
    still(model.second, (1, 4))
    return Oracle(
        model, tokens(), {"first.weight": (8, 8), "head.weight": (3, 8)},
        (64 + 8) + 8 + (8 * 3 + 3), 5 * (2 * 64 + 24), frozen=("reads a tensor that cannot be cut",),
    )  # fmt: skip


class Odd(nn.Module):
    """Refuses what is no tensor, so it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise TypeError("expected a tensor")
        return x.cumsum(1)


def opaque() -> Oracle:
    """Channels that touch `odd` stay, with the reason; those elsewhere go."""
    model = net(
        lambda m, x: pooled(m.last(m.odd(F.relu(m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x))))))))),
        conv1=conv(3, 8), bn1=nn.BatchNorm2d(8), conv2=conv(8, 6), bn2=nn.BatchNorm2d(6), odd=Odd(), last=conv(6, 4, 1),
    )  # fmt: skip
    still(model.bn1, (0, 1, 2))
    still(model.bn2, (3, 4))
    return Oracle(
        model, image(), {"conv1.weight": (5, 3, 3, 3), "conv2.weight": (6, 5, 3, 3), "last.weight": (4, 6, 1, 1)},
        3 * 5 * 9 + 10 + 5 * 6 * 9 + 12 + 6 * 4, 64 * (3 * 5 * 9 + 5 * 6 * 9 + 6 * 4),
        frozen=("Odd cannot be traced (expected a tensor)",),
    )  # fmt: skip


def unknown_function() -> Oracle:
    """A function without a rule, over the channels."""
    model = net(
        lambda m, x: pooled(m.last(torch.sort(F.relu(m.bn(m.stem(x))), dim=1).values)),
        stem=conv(3, 8), bn=nn.BatchNorm2d(8), last=conv(8, 4, 1),
    )  # fmt: skip
    still(model.bn, (0, 1, 2))
    return Oracle(
        model, image(), {"stem.weight": (8, 3, 3, 3)}, 3 * 8 * 9 + 16 + 8 * 4, 64 * (3 * 8 * 9 + 8 * 4),
        frozen=("no rule for sort",)
    )  # fmt: skip


def hooked() -> Oracle:
    """A forward hook adds 1: the dead 0 and 1 become constants, which the last layer's bias takes up."""
    model = net(
        lambda m, x: pooled(m.last(m.act(m.stem(x)))), stem=conv(3, 6, bias=True), act=nn.ReLU(), last=conv(6, 4, 1)
    )
    model.act.register_forward_hook(lambda module, args, out: out + 1)
    still(model.stem, (0, 1))
    return Oracle(
        model, image(), {"stem.weight": (4, 3, 3, 3), "last.weight": (4, 4, 1, 1), "last.bias": (4,)},
        3 * 4 * 9 + 4 + 4 * 4 + 4, 64 * (3 * 4 * 9 + 4 * 4), folded=("last",),
    )  # fmt: skip


ALL: tuple[Callable[[], Oracle], ...] = (
    layer_norm, group_norm, instance_norm, attention, multihead_attention, layer_scale, tied_weights,
    tied_to_the_input, opaque,
    unknown_function, hooked,
)  # fmt: skip
