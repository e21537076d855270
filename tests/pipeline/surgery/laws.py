"""What every test of the surgery asks: the function is the same, and the network given is as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def difference(
    model: nn.Module, compact: nn.Module, example: Sequence[Tensor], batch: int = 3, seed: int = 11
) -> float:
    """Largest |compact - model| over the largest |model|, both in float64 and eval mode, on fresh inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn((batch, *x.shape[1:]), generator=generator, dtype=torch.float64) for x in example]
    left = answers(copy.deepcopy(model).double().eval()(*inputs))
    right = answers(copy.deepcopy(compact).double().eval()(*inputs))
    assert left and [a.shape for a in left] == [b.shape for b in right]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) for a, b in zip(left, right, strict=True))


def answers(output: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Asserts that the block changes no tensor, shape, mode, type or attribute of any module."""
    before, modules = copy.deepcopy(model.state_dict()), _described(model)
    yield
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert _described(model) == modules


def _described(model: nn.Module) -> list[tuple[str, type[nn.Module], bool, dict[str, Any]]]:
    plain = (int, float, str, bool, tuple)
    return [
        (name, type(m), m.training, {k: v for k, v in vars(m).items() if isinstance(v, plain)})
        for name, m in model.named_modules()
    ]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, example: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one image, by torch's own counter of floating point operations (two each)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*(x[:1] for x in example))
    total: int = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


def reasons(certificate: dict[str, Any]) -> set[str]:
    """Why channels stay, beside being the network's answer."""
    return {row["reason"] for row in certificate["frozen"]} - {"output of the network"}
