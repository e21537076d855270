"""Operations that no rule was written for: tried on random data, told by the user, or frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from pytest import mark, raises
from torch import Tensor, nn

from pipeline.surgery import load_compact, save_compact, shrink
from pipeline.surgery.rules.elementwise import unary
from pipeline.surgery.shrink_training import shrink_training
from runtime.errors import UserError
from tests.pipeline.surgery.laws import difference, reasons
from tests.pipeline.surgery.nets_pair import DEAD, WIDTH, DeadPair

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


class Between(DeadPair):
    """An operation behind the second layer."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def between(self, x: Tensor) -> Tensor:
        return self.operation(x)


class Doubling(nn.Module):
    """One thing for every channel alike, in a way that no tracer follows: it asks for values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.detach().abs().max()) < 1e6 else x


class Spread(nn.Module):
    """Every channel reads every other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x, dim=(1, 2)), dim=(1, 2)).real  # type: ignore[no-any-return]


def grid(x: Tensor) -> Tensor:
    return F.grid_sample(x, x.new_zeros(x.shape[0], 3, 3, 2), align_corners=False)


@mark.parametrize(
    "operation",
    [
        nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.LPPool2d(2, 2), F.instance_norm, grid,
        lambda x: x.logcumsumexp(3) * x,
        lambda x: x * x.std((2, 3), keepdim=True), lambda x: x * x.max(3, keepdim=True).values,
        lambda x: x * torch.cumsum(x, 2), lambda x: torch.stack([x, x, x, -x, x]).sum(0),
    ],
)  # fmt: skip
def test_what_acts_on_each_channel_alone_lets_dead_ones_go(
    operation: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    net = Between(operation).eval()
    compact = shrink(net, EXAMPLE)
    assert compact.certificate["channels"]["after"] == 2 * (WIDTH - DEAD) and not reasons(compact.certificate)
    assert difference(net, compact.model, EXAMPLE) < 1e-12
    save_compact(compact, tmp_path / "c")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_compact(tmp_path / "c", net)(x), compact.model.eval()(x))


@mark.parametrize("operation", [Spread(), lambda x: torch.cumsum(x, 1), lambda x: torch.poisson(x.abs())])
def test_what_mixes_channels_or_is_random_freezes_them(operation: Callable[[Tensor], Tensor]) -> None:
    with torch.random.fork_rng():
        compact = shrink(Between(operation).eval(), EXAMPLE, verify=False)
    assert compact.certificate["channels"]["after"] == 2 * WIDTH - DEAD
    assert any("no rule" in reason for reason in reasons(compact.certificate))


class Treacherous(nn.Module):
    """Channel by channel on the data it is tried with; not on two images, the batch that the law tries beside one."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 3 if len(x) == 1 else x * x.shape[1]


Treacherous.__module__ = "torch.nn.modules.treacherous"  # which makes it one call


def test_the_law_catches_what_random_data_do_not_show() -> None:
    net = Between(Treacherous()).eval()
    compact = shrink(net, (torch.zeros(1, 3, 8, 8),))
    assert compact.certificate["channels"]["after"] == 2 * WIDTH - DEAD
    assert difference(net, compact.model, EXAMPLE) < 1e-12 and compact.certificate["notes"] == []


def test_a_rule_of_the_user_counts_before_every_other(tmp_path: Path) -> None:
    net = Between(Doubling()).eval()
    assert shrink(net, EXAMPLE).certificate["channels"]["after"] == 2 * WIDTH - DEAD
    compact = shrink(net, EXAMPLE, rules={Doubling: unary})
    assert compact.certificate["channels"]["after"] == 2 * (WIDTH - DEAD)
    save_compact(compact, tmp_path / "c")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_compact(tmp_path / "c", net, rules={Doubling: unary})(x), compact.model.eval()(x))
    refusing = shrink(Between(torch.relu).eval(), EXAMPLE, rules={torch.relu: lambda a, node: None})
    assert reasons(refusing.certificate) == {"no rule for relu"}


def test_a_part_that_is_frozen_stays_whole() -> None:
    net = Between(nn.ReLU()).eval()
    widths = [
        {r["layer"]: r["after"] for r in shrink(net, EXAMPLE, freeze=names).certificate["layers"]}
        for names in ([], ["classes"], ["a.0", "classes"])
    ]
    assert [w["a.0"] for w in widths] == [WIDTH - DEAD, WIDTH - DEAD, WIDTH]
    assert [w["b.0"] for w in widths] == [WIDTH - DEAD, WIDTH, WIDTH]
    assert "frozen as asked" in reasons(shrink(net, EXAMPLE, freeze=["a"]).certificate)
    with raises(UserError, match=r"no module of the network is named clases.*such as classes"):
        shrink(net, EXAMPLE, freeze=["clases"])


def trained(net: nn.Module) -> tuple[int, float]:
    """Channels of the second layer that stay, and the difference of what is computed."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    resumed = shrink_training(net.train(), (torch.randn(4, 3, 8, 8),), optimizer)
    width = resumed.compact.model.get_parameter("b.0.weight").shape[0]
    return width, difference(net.eval(), resumed.compact.model.eval(), (torch.zeros(2, 3, 8, 8),))


def test_a_cut_during_a_training_tries_calls_too() -> None:
    width, gap = trained(Between(lambda x: x * torch.cumsum(x, 2)))
    assert width == WIDTH - DEAD and gap < 1e-12
    width, gap = trained(Between(lambda x: torch.cumsum(x, 1)))
    assert width == WIDTH and gap < 1e-12
