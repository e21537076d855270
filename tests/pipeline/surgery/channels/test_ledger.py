"""Channels that nobody reads go, alive as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.surgery import load_compact, save_compact, shrink
from tests.pipeline.surgery.laws import difference

EXAMPLE = (torch.zeros(2, 3, 6, 6),)


class Partly(nn.Module):
    """Eight channels, of which what follows reads `take`."""

    def __init__(self, take: Callable[[Tensor], Tensor], count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.take, self.head = nn.Conv2d(3, 8, 3, padding=1), take, nn.Linear(count, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.take(torch.relu(self.a(x))).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("take", "count", "staying"),
    [
        (lambda y: y[:, :4], 4, [0, 1, 2, 3]), (lambda y: y[:, 2:6], 4, [2, 3, 4, 5]),
        (lambda y: y.chunk(2, 1)[1], 4, [0, 4, 5, 6, 7]),  # a piece of a split keeps one
        (lambda y: y[:, 2:6] * y[:, 4:8].sigmoid(), 4, [2, 3, 4, 5, 6, 7]),
    ],
)  # fmt: skip
def test_channels_that_nobody_reads_go(
    take: Callable[[Tensor], Tensor], count: int, staying: list[int], tmp_path: Path
) -> None:
    net = Partly(take, count).eval()
    compact = shrink(net, EXAMPLE)
    assert compact.plan.layers == {"a.weight": tuple(staying)}
    assert torch.equal(compact.model.get_parameter("a.weight"), net.a.weight[staying])
    assert difference(net, compact.model, EXAMPLE) < 1e-12
    save_compact(compact, tmp_path)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(load_compact(tmp_path, Partly(take, count))(x), compact.model.eval()(x))
