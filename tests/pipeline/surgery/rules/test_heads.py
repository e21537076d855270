"""Heads of attention: they go as a whole where all projections agree, and a network that was cut is cut again."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.surgery import shrink
from pipeline.surgery.channels.costs import costs_of
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import trace
from runtime.macs import macs_of

HEADS, DIM, WIDTH = 4, 4, 16
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """A token that is learnt joins (B, L, 16); 4 heads of 4, whose number the code leaves open or not."""

    def __init__(self, fixed_heads: bool, written_out: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.shape = (HEADS, -1) if fixed_heads else (-1, DIM)
        self.written_out = written_out

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = (f(self.norm(x)).unflatten(-1, self.shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.written_out:
            mixed = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


def silence(model: nn.Module, projections: str, heads: Iterable[int], dims: Iterable[int]) -> None:
    rows = [h * DIM + d for h in heads for d in dims]
    with torch.no_grad():
        for name in projections:
            for p in model.get_submodule(name).parameters():
                p[rows] = 0


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("fixed_heads", [False, True])
def test_whatever_is_zero_in_whichever_head_the_compact_network_is_the_same(
    fixed_heads: bool, written_out: bool
) -> None:
    """The law is checked by `shrink`; that queries lose one head and values another must not shift heads."""
    draws = random.Random(0)
    for _ in range(6):
        model = Attention(fixed_heads, written_out).eval()
        for head in range(HEADS):
            silence(model, "qk", [head], range(draws.choice([0, 1, 2, DIM])))
            silence(model, "v", [head], range(draws.choice([0, 1, 2, DIM])))
        compact = shrink(model, (X,))
        assert torch.allclose(compact.model(X), model(X), atol=1e-5)
        assert {name for name, _ in compact.model.named_parameters()} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("written_out", [False, True])
def test_a_head_goes_with_its_queries_keys_and_values_alone(written_out: bool) -> None:
    model = Attention(False, written_out).eval()
    silence(model, "qkv", [1], range(DIM))
    assert shrink(model, (X,)).model.get_parameter("v.weight").shape == (12, WIDTH)
    other = Attention(False, written_out).eval()
    silence(other, "qk", [1], range(DIM))
    silence(other, "v", [2], range(DIM))
    assert shrink(other, (X,)).model.get_parameter("v.weight").shape == (16, WIDTH)


def test_a_network_that_was_cut_is_cut_again() -> None:
    """The token is spread over the batch by `expand`, which the compact network has to be traced through."""
    first = Attention(True, False).eval()
    silence(first, "qk", range(HEADS), [0])
    once = shrink(first, (X,)).model
    assert once.get_parameter("q.weight").shape == (12, WIDTH)
    with torch.no_grad():
        for p in once.get_submodule("v").parameters():
            p[[0, 5, 10, 15]] = 0
    again = shrink(copy.deepcopy(once), (X,)).model
    assert trace(again, (X,)).frozen is None
    assert again.get_parameter("v.weight").shape == (12, WIDTH) and again.get_parameter("q.weight").shape == (12, WIDTH)
    assert torch.allclose(again(X), once(X), atol=1e-5)


def test_costs_count_the_products_of_attention_and_heads_come_as_rows() -> None:
    """6 tokens: four projections of 16 x 16 each, and two products of 6 x 6 x 16."""
    by_hand = 6 * 4 * WIDTH * WIDTH + 2 * 6 * 6 * WIDTH
    for written_out in (False, True):
        model = Attention(True, written_out).eval()
        costs = costs_of(analyse(trace(model, (X,))))
        assert costs.macs(costs.fixed | True) == by_hand == macs_of(model, (X,))
        assert [matrix.shape for group in costs.groups for matrix in group.rows] == [(HEADS, DIM), (HEADS, DIM)]


def test_attention_of_torch_is_counted_though_one_kernel_computes_it() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
    assert macs_of(layer, (X,)) == 5 * (4 * WIDTH * WIDTH + 2 * WIDTH * 32) + 2 * 5 * 5 * WIDTH
    assert torch.backends.mha.get_fastpath_enabled()
