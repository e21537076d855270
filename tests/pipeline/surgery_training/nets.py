"""Small networks to train, with channels killed so that they stay dead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


class Block(nn.Module):
    def __init__(self, before: int, width: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


class Residual(nn.Module):
    """(B, 3, H, W) -> (B, 5): stem of 12 channels, two blocks of inner widths 10 and 14, streams of 16 and 20."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.one = Block(12, 10, 16, 1)
        self.two = Block(16, 14, 20, 2)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(F.relu(self.bn(self.stem(x)))))
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


DEAD = {"bn": [0, 3, 4], "one.bn1": [1, 2, 9], "two.bn1": [0, 5, 6, 13]}
STREAM = {"one.bn2": [2, 7], "one.down.1": [2, 7]}
"""Channels of the first block's output: dead at both members of the sum."""


KEEP: dict[str, tuple[str | None, str | None]] = {
    # parameter or buffer prefix -> whose dead channels leave its rows, whose leave its columns
    "stem": ("bn", None),
    "bn": ("bn", None),
    "one.conv1": ("one.bn1", "bn"),
    "one.bn1": ("one.bn1", None),
    "one.conv2": ("one.bn2", "one.bn1"),
    "one.bn2": ("one.bn2", None),
    "one.down.0": ("one.bn2", "bn"),
    "one.down.1": ("one.bn2", None),
    "two.conv1": ("two.bn1", "one.bn2"),
    "two.bn1": ("two.bn1", None),
    "two.conv2": (None, "two.bn1"),
    "two.bn2": (None, None),
    "two.down.0": (None, "one.bn2"),
    "two.down.1": (None, None),
    "fc": (None, None),
}


def left(name: str, tensor: Tensor) -> Tensor:
    """What is left of a tensor of the net, or of optimizer state of its shape, without DEAD and STREAM."""
    if tensor.dim() == 0:
        return tensor
    for axis, owner in enumerate(KEEP[name.rpartition(".")[0]]):
        if owner is not None:
            gone = {**DEAD, **STREAM}[owner]
            tensor = tensor[(slice(None),) * axis + ([i for i in range(tensor.shape[axis]) if i not in gone],)]
    return tensor


@torch.no_grad()
def kill(model: nn.Module, dead: dict[str, list[int]], beta: float = -0.1) -> None:
    """gamma = 0 and beta below 0: ReLU makes zeros of them, and no gradient passes."""
    for name, channels in dead.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight[channels] = 0.0
        norm.bias[channels] = beta


def residual(seed: int = 0, dropout: float = 0.0) -> Residual:
    """With DEAD and STREAM killed: of 12 + 10 + 16 + 16 + 14 + 20 + 20 layer channels 3 + 3 + 2 + 2 + 4 are dead."""
    torch.manual_seed(seed)
    model = Residual(dropout)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
    kill(model, {**DEAD, **STREAM})
    return model


def batches(count: int, size: int = 6) -> Sequence[tuple[Tensor, Tensor]]:
    """(x (size, 3, 8, 8), y (size,))"""
    generator = torch.Generator().manual_seed(99)
    return [
        (torch.randn((size, 3, 8, 8), generator=generator), torch.randint(5, (size,), generator=generator))
        for _ in range(count)
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> float:
    """One training step; the loss before it."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())


def same_as_left(dense: nn.Module, compact: nn.Module) -> float:
    """Largest difference of the compact network's parameters and buffers from what is left of the dense one's."""
    have = compact.state_dict()
    assert set(have) == set(dense.state_dict())
    differences = []
    for name, tensor in dense.state_dict().items():
        want = left(name, tensor)
        assert have[name].shape == want.shape, name
        differences.append(float((have[name].double() - want.double()).abs().max()))
    return max(differences)


def state_left(dense: nn.Module, before: Optimizer, compact: nn.Module, after: Optimizer) -> float:
    """The same for optimizer state."""
    now, worst = dict(compact.named_parameters()), 0.0
    for name, parameter in dense.named_parameters():
        have = after.state[now[name]]
        assert set(have) == set(before.state[parameter])
        for key, value in before.state[parameter].items():
            if isinstance(value, Tensor):
                want = left(name, value)
                assert have[key].shape == want.shape and have[key].dtype == want.dtype, (name, key)
                worst = max(worst, float((have[key] - want).abs().max()))
    return worst
