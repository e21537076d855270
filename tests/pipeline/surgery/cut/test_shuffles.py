"""Shuffles before grouped convolutions give back no more channels than the layout asks for."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.surgery import shrink
from pipeline.surgery.channels.ledger import Rows
from pipeline.surgery.cut.shuffles import shuffles
from tests.pipeline.surgery.laws import difference

EXAMPLE = (torch.zeros(2, 3, 4, 4),)
ROWS, SIZE = 3, 8


class Shuffled(nn.Module):
    """24 channels in 3 rows of 8, shuffled, then read in 3 groups of 8."""

    def __init__(self, dead: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 6, 1, groups=3), nn.Conv2d(6, 2, 1)
        with torch.no_grad():
            self.a.weight[dead] = 0
            self.a.bias[dead] = 0  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, _, h, w = y.shape
        y = y.view(n, ROWS, SIZE, h, w).transpose(1, 2).reshape(n, ROWS * SIZE, h, w)
        return self.c(self.b(y))  # type: ignore[no-any-return]


def smallest(alive: set[int]) -> int:
    """The fewest channels of 24 that contain `alive`, found by trying every choice: as many of each row, and, shuffled,
    each third of them from the third of the order that it was in."""
    for n in range(1, SIZE + 1):
        options = []
        for row in range(ROWS):
            mine = [i for i in range(SIZE) if row * SIZE + i in alive]
            options.append([c for c in choices(n) if set(mine) <= set(c)])
        for rows in product(*options):
            order = [rows[r][j] * ROWS + r for j in range(n) for r in range(ROWS)]
            if all(order[q] // SIZE == q // n for q in range(ROWS * n)):
                return ROWS * n
    raise AssertionError("all of them always fit")


def choices(n: int) -> list[tuple[int, ...]]:
    return [tuple(i for i in range(SIZE) if bits >> i & 1) for bits in range(1 << SIZE) if bits.bit_count() == n]


def test_no_more_channels_stay_than_the_best_of_all_choices_has() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = []
    for _ in range(6):
        dead = torch.randperm(24, generator=generator)[:17].tolist()
        net = Shuffled(dead).eval()
        compact = shrink(net, EXAMPLE)
        widths.append(compact.model.get_parameter("a.weight").shape[0])
        assert widths[-1] == smallest(set(range(24)) - set(dead))
        assert difference(net, compact.model, EXAMPLE) < 1e-12
    assert min(widths) < 24


def test_rows_and_groups_that_are_no_shuffle_of_each_other_are_none() -> None:
    ids = np.arange(24).reshape(3, 8)
    assert shuffles([Rows((ids,)), Rows((ids[::-1].copy(),))], np.arange(24)) == []
    (one,) = shuffles([Rows((ids,)), Rows((ids.T.reshape(3, 8),))], np.arange(24))
    assert one.groups == 3 and one.group.tolist()[1] == [0, 0, 0, 1, 1, 2, 2, 2]  # of places 1, 4, 7, 10, ... by 8
