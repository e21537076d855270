"""Random networks: a program of small operations over a growing list of tensors, with random channels made constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pipeline.surgery.nets import Free, awaken, still

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Step:
    """values.append(call(*modules, *values[inputs]))"""

    call: Call
    modules: tuple[str, ...]
    inputs: tuple[int, ...]


class Program(nn.Module):
    """Runs the steps; the answers are those of the values in `outputs`."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.steps: list[Step] = []
        self.outputs: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            values.append(step.call(*(self.parts[m] for m in step.modules), *(values[i] for i in step.inputs)))
        answers = tuple(values[i] for i in self.outputs)
        return answers if len(answers) > 1 else answers[0]


@dataclass
class Grower:
    """Adds steps to a program and keeps the tensors they make, so that every step fits."""

    rng: Random
    program: Program = field(default_factory=Program)
    values: list[Tensor] = field(default_factory=list)

    def add(self, call: Call, *inputs: int, **modules: nn.Module) -> int:
        names = []
        for name, module in modules.items():
            names.append(f"{name}{len(self.program.parts)}")
            self.program.parts[names[-1]] = module
        return self.again(call, tuple(names), *inputs)

    def again(self, call: Call, names: tuple[str, ...], *inputs: int) -> int:
        made = call(*(self.program.parts[n] for n in names), *(self.values[i] for i in inputs))
        self.program.steps.append(Step(call, names, inputs))
        self.values.append(made)
        return len(self.values) - 1

    def width(self, i: int) -> int:
        return self.values[i].shape[1]

    def side(self, i: int) -> int:
        return self.values[i].shape[2]


def module(m: nn.Module, x: Tensor) -> Any:
    return m(x)


def convolution(g: Grower, i: int) -> int:
    ins, rng = g.width(i), g.rng
    groups = rng.choice([n for n in (1, 1, 2, 3) if ins % n == 0])
    outs = groups * rng.randint(1, 8 // groups)
    kernel = rng.choice([1, 3]) if g.side(i) > 3 else 1
    padding = rng.choice([0, kernel // 2])
    conv = nn.Conv2d(
        ins, outs, kernel, padding=padding, groups=groups, bias=rng.random() < 0.5,
        padding_mode=rng.choice(["zeros", "zeros", "reflect"]) if padding else "zeros",
    )  # fmt: skip
    return g.add(module, i, conv=conv)


def depthwise(g: Grower, i: int) -> int:
    times = g.rng.choice([1, 1, 2])
    conv = nn.Conv2d(g.width(i), g.width(i) * times, 3, padding=1, groups=g.width(i), bias=g.rng.random() < 0.5)
    return g.add(module, i, depth=conv)


def transposed(g: Grower, i: int) -> int:
    ins, rng = g.width(i), g.rng
    groups = rng.choice([n for n in (1, 1, 2) if ins % n == 0])
    up = nn.ConvTranspose2d(ins, groups * rng.randint(1, 3), 2, stride=1, groups=groups, bias=rng.random() < 0.5)
    return g.add(module, i, up=up)


def normed(g: Grower, i: int) -> int:
    width = g.width(i)
    choices: list[nn.Module] = [nn.BatchNorm2d(width)] * 4
    if g.side(i) > 1:
        choices.append(nn.InstanceNorm2d(width, affine=True))
    choices += [nn.GroupNorm(n, width) for n in (1, 2) if width % n == 0 and width > n]
    return g.add(module, i, norm=g.rng.choice(choices))


def activated(g: Grower, i: int) -> int:
    kinds: list[nn.Module] = [
        nn.ReLU(),
        nn.ReLU(),
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.GELU(),
        nn.Sigmoid(),
    ]
    kinds += [nn.Hardswish(), nn.LeakyReLU(0.1), nn.PReLU(g.width(i)), nn.PReLU(), nn.Dropout(0.3), nn.Tanh()]
    kind = g.rng.choice(kinds)
    if getattr(kind, "inplace", False):
        return g.add(lambda m, x: m(x * 1.0), i, act=kind)
    return g.add(module, i, act=kind)


def unary(g: Grower, i: int) -> int:
    calls: list[Call] = [
        lambda x: 1 - x, lambda x: x / 3, lambda x: x.abs() + 0.5, lambda x: -x, lambda x: x.pow(2), F.softplus,
        lambda x: torch.clamp(x, -0.2, 0.7), lambda x: x.exp().clamp(max=9.0), torch.clone,
        lambda x: x - x.mean((2, 3), keepdim=True),
    ]  # fmt: skip
    return g.add(g.rng.choice(calls), i)


def pooled(g: Grower, i: int) -> int:
    calls: list[Call] = [
        lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), lambda x: F.interpolate(x, size=(4, 4)),
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=False), lambda x: x[:, :, 1:],
    ]  # fmt: skip
    return g.add(g.rng.choice(calls), i) if 3 <= g.side(i) <= 6 else i


def padded(g: Grower, i: int) -> int:
    before, after = g.rng.randint(0, 2), g.rng.randint(0, 2)
    if g.rng.random() < 0.5 and g.side(i) < 7:
        return g.add(lambda x: F.pad(x, (before, after, 1, 0), value=0.0), i)
    return g.add(lambda x: F.pad(x, (0, 0, 0, 0, before, after)), i) if g.width(i) < 8 else i


def taken_apart(g: Grower, i: int) -> int:
    width, rng = g.width(i), g.rng
    if width < 2:
        return i
    at = rng.randint(1, width - 1)
    calls: list[Call] = [
        lambda x: x.chunk(2, 1)[0], lambda x: x.chunk(2, 1)[-1], lambda x: x.split([at, width - at], 1)[1],
        lambda x: torch.split(x, at, dim=1)[0], lambda x: x[:, at:], lambda x: x[:, :at], lambda x: x.flip(1),
        lambda x: x.narrow(2, 0, 1), lambda x: x[:, ::2],
    ]  # fmt: skip
    return g.add(rng.choice(calls), i)


def rearranged(g: Grower, i: int) -> int:
    width, side, rng = g.width(i), g.side(i), g.rng
    calls: list[Call] = [lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), lambda x: x.transpose(2, 3)]
    if width % 2 == 0:
        calls += [lambda x: shuffled(x, 2)] * 3
    if width % 4 == 0 and side < 5:
        calls.append(lambda x: F.pixel_shuffle(x, 2))
    if side % 2 == 0 and width < 4 and g.values[i].shape[3] % 2 == 0:
        calls.append(lambda x: F.pixel_unshuffle(x, 2))
    return g.add(rng.choice(calls), i)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, -1, h, w)


def mapped(g: Grower, i: int) -> int:
    """A linear map over the channels, which are moved to the last axis for it."""
    line = nn.Linear(g.width(i), g.rng.randint(1, 8), bias=g.rng.random() < 0.5)
    return g.add(lambda m, x: m(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), i, line=line)


def layer_normed(g: Grower, i: int) -> int:
    norm = nn.LayerNorm(g.width(i))
    return g.add(lambda m, x: m(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), i, norm=norm)


def scaled(g: Grower, i: int) -> int:
    return g.add(module, i, free=Free(g.width(i)))


def gated(g: Grower, i: int) -> int:
    width, inner = g.width(i), g.rng.randint(1, 4)
    down, up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
    return g.add(lambda a, b, x: x * torch.sigmoid(b(F.relu(a(x.mean((2, 3), keepdim=True))))), i, down=down, up=up)


def attended(g: Grower, i: int) -> int:
    """Positions attend to each other; channels are the inner axis."""
    dim = g.rng.randint(1, 6)
    maps = {n: nn.Conv2d(g.width(i), dim, 1, bias=g.rng.random() < 0.5) for n in ("q", "k", "v")}
    return g.add(_attend, i, **maps)


def _attend(q: nn.Module, k: nn.Module, v: nn.Module, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    a, b, c = (m(x).flatten(2).transpose(1, 2) for m in (q, k, v))
    out = (a @ b.transpose(1, 2)).softmax(-1) @ c
    spread: Tensor = torch.unflatten(out.transpose(1, 2), 2, (h, w))
    return spread


def joined(g: Grower, i: int) -> int:
    fitting = [j for j, v in enumerate(g.values) if v.shape[2:] == g.values[i].shape[2:]]
    chosen = [g.rng.choice(fitting) for _ in range(g.rng.randint(1, 2))]
    if g.width(i) + sum(g.width(j) for j in chosen) > 14:
        return i
    return g.add(lambda *xs: torch.cat(xs, dim=1), i, *chosen)


def combined(g: Grower, i: int) -> int:
    fitting = [j for j, v in enumerate(g.values) if j and v.shape == g.values[i].shape]
    if not fitting:
        return i
    calls: list[Call] = [
        torch.add, torch.add, torch.add, torch.mul, torch.sub, torch.maximum, lambda x, y: (x * 1.0).add_(y),
        lambda x, y: torch.stack([x, y], 1).sum(1), lambda x, y: torch.stack([x, y]).amax(0),
        lambda x, y: x * y.sigmoid(),
        lambda x, y: x + y.mean((2, 3), keepdim=True), lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: x / (2 + y.abs()),
    ]  # fmt: skip
    return g.add(g.rng.choice(calls), i, g.rng.choice(fitting))


def reused(g: Grower, i: int) -> int:
    """A module called again."""
    old = [s for s in g.program.steps if len(s.modules) == 1 and g.values[s.inputs[0]].shape == g.values[i].shape]
    if not old:
        return i
    step = g.rng.choice(old)
    return g.again(step.call, step.modules, i)


KINDS = (
    convolution, convolution, convolution, normed, normed, normed, activated, activated, activated, depthwise,
    transposed, unary, pooled, padded, taken_apart, rearranged, mapped, layer_normed, scaled, gated, attended, joined,
    joined, combined, combined, combined, reused,
)  # fmt: skip


def grow(rng: Random) -> tuple[Program, tuple[Tensor, ...]]:
    """A network in float64 and eval mode, and an input (2, C, H, W); its last hidden layer is called `canary`."""
    x = torch.randn((2, rng.randint(1, 4), 5, rng.choice([4, 5])), generator=torch.Generator().manual_seed(3))
    g = Grower(rng, values=[x])
    with torch.no_grad():
        i = convolution(g, 0)
        for _ in range(rng.randint(2, 9)):
            i = rng.choice(KINDS)(g, i if rng.random() < 0.6 else rng.randrange(len(g.values)))
        g.program.parts["canary"] = nn.Conv2d(g.width(i), 6, 1, bias=False)
        g.program.parts["canary_norm"] = nn.BatchNorm2d(6)
        i = g.again(lambda a, b, x: F.relu(b(a(x))), ("canary", "canary_norm"), i)
        flat: Call = rng.choice([lambda m, x: m(x.mean((2, 3))), lambda m, x: m(x.flatten(1))])
        g.program.parts["head"] = nn.LazyLinear(3)
        last = g.again(flat, ("head",), i)
    g.program.outputs = (last, rng.randrange(1, i)) if rng.random() < 0.3 and i > 1 else (last,)
    return kill(awaken(g.program, rng.randrange(1 << 16)).double().eval(), rng), (x.double(),)


def kill(program: Any, rng: Random) -> Any:
    """Make random output channels constant: mostly zero or negative, at times positive."""
    share = rng.choice([0.0, 0.3, 0.6, 0.9])
    for m in program.parts.values():
        weight = getattr(m, "weight", None)
        if weight is None or (isinstance(m, nn.PReLU) and len(weight) == 1):
            continue
        if isinstance(m, Free):
            with torch.no_grad():
                gone = [c for c in range(weight.shape[1]) if rng.random() < share]
                m.weight[:, gone], m.bias[gone] = 0, rng.choice([0.0, 0.0, 0.4])
            continue
        width = weight.shape[1] if isinstance(m, nn.ConvTranspose2d) else weight.shape[0]
        gone = [c for c in range(width) if rng.random() < share]
        if isinstance(m, nn.PReLU):
            m.weight.data[gone] = 0
        else:
            still(m, gone, 0.0 if m.bias is None else rng.choice([0.0, 0.0, -0.3, 0.5]))
    return program
