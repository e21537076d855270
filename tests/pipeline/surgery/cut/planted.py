"""Plant 'n' Seek (arXiv 2111.11153): networks in which a solution of known widths is hidden.

Each ticket has 4 matrices. `relu`: y = max(x, 0), one path of ones; 4 weights. `circle`: the class of a point of
[-1, 1]^2 follows from x1^2 + x2^2 against 0.2, 0.5 and 0.7: +-x1, +-x2 (4 units); |x1|, |x2| (2); both squared by 10
knots each (20); the 4 logits; 108 weights. `helix`: y = (t cos t, t sin t, t) / 8 pi with t = 5 pi + 3 pi x: x + 1 (1
unit); 30 knots, which three outputs read (30); their values + 1 (3). The third is a straight line, whose slope changes
at no knot but counts the falling pieces' first slope, so 95 weights are not 0; the paper's code stores 124.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WIDTH, KNOTS, TURNS = 100, 10, 30
LIMITS = torch.tensor([0.2, 0.5, 0.7])
LAYERS = ("0", "2", "4", "6")
TICKETS = {"relu": (1, 1, 1), "circle": (4, 2, 20), "helix": (1, 30, 3)}
"""Task -> widths of the hidden layers."""
WEIGHTS = {"relu": 4, "circle": 108, "helix": 95}
SIDES = {"relu": (1, 1), "circle": (2, 4), "helix": (1, 3)}
"""Task -> inputs and outputs."""
TICKET = TICKETS["circle"]
CLOSE = 0.06  # the chords of 30 knots miss the helix by at most (2/29)^2 / 8 of its curvature, 0.053
Layers = list[tuple[Tensor, Tensor]]


def ticket(task: str = "circle") -> Layers:
    """(weight, bias) of each layer."""
    return {"relu": relu, "circle": circle, "helix": helix}[task]()


def relu() -> Layers:
    return [(torch.ones(1, 1), torch.zeros(1)) for _ in LAYERS]


def circle() -> Layers:
    one = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    two = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    gap, sign = 1 / (KNOTS - 1), torch.tensor([1.0, -1.0]).repeat(KNOTS // 2)
    knots = torch.arange(KNOTS) * gap
    three = torch.zeros(2 * KNOTS, 2)
    three[:KNOTS, 0], three[KNOTS:, 1] = sign, sign
    outer = torch.full((KNOTS,), 2 * gap)  # the slope of the chords of u^2 grows by so much at each knot
    outer[0] = gap + 2 * gap * (KNOTS // 2)  # the first slope, less what the falling pieces take from it
    rest = -(outer * knots)[sign < 0].sum()
    steep = torch.tensor([5.0, 10.0, 20.0, 40.0])
    shift = torch.cat([torch.zeros(1), -(steep.diff() * LIMITS).cumsum(0)])  # neighbours cross at the limits
    four = steep.unsqueeze(1) * outer.repeat(2)
    biases = (torch.zeros(4), torch.zeros(2), -(sign * knots).repeat(2), 2 * rest * steep + shift)
    return list(zip((one, two, three, four), biases, strict=True))


def helix() -> Layers:
    knots = torch.linspace(0, 2, TURNS, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(TURNS // 2)
    values = on_helix(knots - 1)  # (knots, 3)
    slopes = values.diff(dim=0) / knots[1]
    outer = torch.zeros(TURNS, 3, dtype=torch.float64)
    outer[1:-1] = slopes.diff(dim=0)
    outer[-1] = outer[-2]  # beyond the last knot there is nothing to be right about
    outer[:, 2][1:] = 0  # a straight line
    falling = outer[sign < 0]
    outer[0] = slopes[0] + falling.sum(0)
    bias = values[0] - (falling * knots[sign < 0].unsqueeze(1)).sum(0) + 1
    layers = [
        (torch.ones(1, 1), torch.ones(1)), (sign.unsqueeze(1), -sign * knots), (outer.T, bias),
        (torch.eye(3), -torch.ones(3)),
    ]  # fmt: skip
    return [(weight.float(), shift.float()) for weight, shift in layers]


def on_helix(x: Tensor) -> Tensor:
    """x (N,) -> (N, 3)."""
    t = 5 * math.pi + 3 * math.pi * x
    return torch.stack([t * t.cos(), t * t.sin(), t], 1) / (8 * math.pi)


def planted(noise: float, seed: int = 0, task: str = "circle") -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A network with three hidden layers of 100 units, with the ticket at random units, its other parameters normal
    with He's spread times `noise`, and the mask of the ticket's weights."""
    generator = torch.Generator().manual_seed(seed)
    inputs_, outputs_ = SIDES[task]
    network = nn.Sequential(
        nn.Linear(inputs_, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, outputs_),
    )  # fmt: skip
    hidden = [torch.randperm(WIDTH, generator=generator)[:n] for n in TICKETS[task]]
    units, masks = [torch.arange(inputs_), *hidden, torch.arange(outputs_)], {}
    with torch.no_grad():
        for path, inputs, outputs, (weight, bias) in zip(LAYERS, units, units[1:], ticket(task), strict=False):
            layer = network.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            for p in (layer.weight, layer.bias):
                p.copy_(noise * (2 / layer.in_features) ** 0.5 * torch.randn(p.shape, generator=generator))
            mask = torch.zeros_like(layer.weight, dtype=torch.bool)
            mask[outputs.unsqueeze(1), inputs] = weight != 0
            block = layer.weight[outputs.unsqueeze(1), inputs]
            layer.weight[outputs.unsqueeze(1), inputs] = torch.where(weight != 0, weight, block)
            layer.bias[outputs] = bias
            masks[f"{path}.weight"] = mask
    return network.eval(), masks


def widths(network: nn.Module) -> tuple[int, ...]:
    """Of the hidden layers."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return tuple(layer.out_features for layer in layers[:-1])


def samples(task: str, points: int, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Inputs (N, d) on [-1, 1]^d, and classes (N,) or values (N, outputs), without the paper's noise."""
    x = 2 * torch.rand(points, SIDES[task][0], generator=torch.Generator().manual_seed(seed)) - 1
    if task == "circle":
        return x, torch.bucketize(x.square().sum(1), LIMITS)
    return x, x.relu() if task == "relu" else on_helix(x[:, 0])


def accuracy(network: nn.Module, points: int = 4000, task: str = "circle") -> float:
    """Share of points whose class is right, or whose values are all within CLOSE."""
    x, y = samples(task, points)
    with torch.no_grad():
        outputs = network(x)
    right = outputs.argmax(1) == y if task == "circle" else ((outputs - y).abs() < CLOSE).all(1)
    return float(right.float().mean())
