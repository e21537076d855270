"""Variances over channels, by hand and by PyTorch: the channels that went are still counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytest import mark
from torch import Tensor, nn

from pipeline.surgery import shrink
from tests.pipeline.surgery.laws import difference, reasons
from tests.pipeline.surgery.nets_pair import DEAD, WIDTH, DeadPair

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


class Normed(DeadPair):
    """A norm over the channels, written out, whose scale is zero for the dead ones."""

    def __init__(self, spread: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spread = spread
        self.scale = nn.Parameter(torch.ones(WIDTH, 1, 1))
        with torch.no_grad():
            self.scale[:DEAD] = 0

    def between(self, x: Tensor) -> Tensor:
        return self.scale * ((x - x.mean(1, keepdim=True)) / (self.spread(x) + 1e-6).sqrt())


@mark.parametrize(
    "spread",
    [
        lambda x: ((x - x.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True),
        lambda x: (x - x.mean(1, keepdim=True)).square().mean(dim=1, keepdim=True),
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)).pow(2).mean((1, 2, 3), keepdim=True),
        lambda x: (lambda centred: centred * centred)(x - x.mean(1, keepdim=True)).mean(1, keepdim=True),
        lambda x: ((x - x.mean(1, keepdim=True)) ** 2).mean(1).unsqueeze(1),
        lambda x: x.var(1, keepdim=True), lambda x: x.var(1, unbiased=False, keepdim=True),
        lambda x: torch.var(x, dim=(1, 2), correction=0, keepdim=True), lambda x: x.std(1, keepdim=True),
    ],
)  # fmt: skip
def test_a_norm_by_hand_lets_dead_channels_go(spread: Callable[[Tensor], Tensor]) -> None:
    net = Normed(spread).eval()
    compact = shrink(net, EXAMPLE)
    assert compact.certificate["channels"]["after"] == 2 * (WIDTH - DEAD) and not reasons(compact.certificate)
    assert difference(net, compact.model, EXAMPLE) < 1e-9
    again = shrink(compact.model, EXAMPLE)
    assert again.certificate["channels"]["after"] == compact.certificate["channels"]["after"]
    assert difference(net, again.model, EXAMPLE) < 1e-9


def test_a_second_cut_counts_what_both_removed() -> None:
    net = Normed(lambda x: (x - x.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True)).eval()
    first = shrink(net, EXAMPLE)
    with torch.no_grad():
        first.model.get_parameter("b.1.weight")[0] = first.model.get_parameter("scale")[0] = 0
        first.model.get_parameter("b.1.bias")[0] = -1  # ReLU never opens
    second = shrink(first.model, EXAMPLE)
    assert second.model.get_parameter("scale").shape[0] == WIDTH - DEAD - 1
    assert difference(first.model, second.model, EXAMPLE) < 1e-9
