"""The law in float64 on networks that name another precision, and the mode it runs in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytest import mark, raises
from torch import Tensor, nn

from pipeline.surgery import shrink
from pipeline.surgery.shrink_training import shrink_training
from pipeline.surgery.trace.float64 import Double, in_double
from runtime.errors import UserError
from tests.pipeline.surgery.nets_pair import DeadPair

THIRD = 1 / 3  # rounded to float64; float32 rounds it elsewhere


@torch.library.custom_op("demport_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operator of a user's own, for float32 alone."""
    if x.dtype != torch.float32:
        raise RuntimeError("twice takes float32")
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


twice.register_autograd(lambda _, gradient: gradient * 2)


@torch.library.custom_op("demport_tests::large", mutates_args=())
def large(x: Tensor) -> Tensor:
    """An operator whose float64 does not fit."""
    if x.dtype == torch.float64:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return x.clone()


class Casts(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y / y.pow(2).mean((1, 2, 3), keepdim=True, dtype=torch.float32).sqrt()).to(torch.bfloat16).to(x.dtype)


class Constants(DeadPair):
    """Constants computed in float32, whose results float64 would round elsewhere."""

    def between(self, x: Tensor) -> Tensor:
        steps = torch.arange(1, 4).float().div(7).exp()
        return x * steps.sum() + torch.linspace(0, 1, 5, dtype=torch.float32)[2:3].sin()


class Sampled(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(torch.eye(2, 3).expand(x.shape[0], 2, 3) * 0.7, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Steady(DeadPair):
    """A part that stays in its own precision wherever it runs, which asks for the device by name."""

    def between(self, x: Tensor) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x.float() * (2 if x.device.index is None else 3)


class OneFormat(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        return twice(x)  # type: ignore[no-any-return]


@mark.parametrize("network", [Casts, Constants, Sampled, Steady, OneFormat])
def test_the_law_holds_where_code_names_a_precision(network: type[DeadPair]) -> None:
    model = network()
    compact = shrink(model, (torch.zeros(1, 3, 8, 8),))
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.BOTH
    assert compact.certificate["law"]["max_rel_diff"] <= 1e-12
    assert compact.certificate["law"]["single"] == (("twice.default",) if network is OneFormat else ())
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(compact.model(x), model(x), rtol=1e-4, atol=1e-4)


@mark.parametrize("network", [Casts, Sampled, Steady, OneFormat])
def test_a_cut_between_two_steps_takes_them_too(network: type[DeadPair]) -> None:
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)),)
    resumed = shrink_training(model, batch, optimizer)
    assert sum(p.numel() for p in resumed.compact.model.parameters()) < sum(p.numel() for p in model.parameters())


def test_code_that_refuses_float64_is_told_in_one_line() -> None:
    class Refuses(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32, "float32 only"
            return x

    with raises(UserError, match=r"the network raises in float64: float32 only"):
        shrink(Refuses(), (torch.zeros(1, 3, 8, 8),))
    unchecked = shrink(Refuses(), (torch.zeros(1, 3, 8, 8),), verify=False)
    assert sum(p.numel() for p in unchecked.model.parameters()) == DeadPair.BOTH
    assert not unchecked.certificate["law"]


def test_a_lack_of_memory_is_no_operator_without_float64() -> None:
    class Large(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x

    with raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        shrink(Large(), (torch.zeros(1, 3, 8, 8),))
    with Double(), raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        large(torch.ones(2, dtype=torch.float64))


def test_casts_of_float64_stay_float64() -> None:
    x = torch.tensor([THIRD], dtype=torch.float64)
    assert x.float().double().item() != THIRD
    with Double():
        casts = [x.float(), x.to(torch.float16), x.to(dtype=torch.bfloat16), x.sum(dtype=torch.float32), x.half()]
    assert [c.dtype for c in casts] == [torch.float64] * 5
    assert {c.item() for c in casts} == {THIRD}


def test_what_is_made_of_constants_is_left_alone_until_it_meets_float64() -> None:
    outside = torch.arange(1, 4).float().div(7).exp()
    with Double():
        inside = torch.arange(1, 4).float().div(7).exp()
        met = torch.ones(3, dtype=torch.float64) @ torch.diag(inside)
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)
    assert met.dtype == torch.float64 and torch.equal(met, outside.double())


def test_what_a_call_writes_to_keeps_its_precision_and_place() -> None:
    total, x = torch.zeros(2), torch.full((2,), THIRD, dtype=torch.float64)
    with Double():
        same = total.add_(x)
        total[0] = x[0]
        torch.mul(x, 1.0, out=total)
    assert same is total and total.dtype == torch.float32
    assert torch.equal(total, x.float())


def test_an_operator_without_float64_gets_float32_and_its_own_error_counts() -> None:
    with Double():
        made = twice(torch.tensor([THIRD], dtype=torch.float64))
        with raises(RuntimeError, match="size of tensor"):
            torch.ones(2, dtype=torch.float64) + torch.ones(3, dtype=torch.float64)
    assert made.dtype == torch.float64 and made.item() == 2 * torch.tensor(THIRD).item()


def test_complex_buffers_keep_their_imaginary_part() -> None:
    module = nn.Module()
    module.register_buffer("turn", torch.tensor([1 + 2j]))
    module.register_buffer("count", torch.tensor([3]))
    module.register_buffer("_tensor_constant0", torch.tensor([THIRD]))
    turn, count, constant = in_double(module).buffers()
    assert turn.dtype == torch.complex128 and turn.item() == 1 + 2j
    assert (count.dtype, constant.dtype) == (torch.int64, torch.float32)
