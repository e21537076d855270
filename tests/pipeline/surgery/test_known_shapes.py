"""What is worked out about shapes is what torch's meta tensors say, and errors stay torch's."""

from __future__ import annotations

import operator
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.surgery.known_shapes import FUNCTIONS, LINEAR, MODULES
from pipeline.surgery.shapes import Shapes

DRAWS = range(60)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def described(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.stride(), x.dtype, x.device.type


def layout(x: Tensor, draw: random.Random) -> Tensor:
    """The same shape, sometimes with other strides."""
    if x.dim() == 4 and draw.random() < 0.2:
        return x.to(memory_format=torch.channels_last)
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 and draw.random() < 0.2 else x


def any_convolution(draw: random.Random) -> tuple[nn.Module, Tensor]:
    rank = draw.choice((1, 2, 3))
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    groups = draw.choice((1, 1, 2, 6))
    settings: dict[str, Any] = {
        key: tuple(draw.randint(low, 3) for _ in range(rank)) for key, low in (("stride", 1), ("dilation", 1))
    }
    settings["padding"] = draw.choice((0, 1, 2, "valid", tuple(draw.randint(0, 2) for _ in range(rank))))
    settings["padding_mode"] = draw.choice(("zeros", "zeros", "zeros", "reflect"))
    kernel = tuple(draw.randint(1, 3) for _ in range(rank))
    module = kind(6, 12, kernel, groups=groups, bias=draw.random() < 0.5, device="meta", **settings)
    return module, layout(meta(draw.randint(1, 3), 6, *(draw.randint(7, 12) for _ in range(rank))), draw)


def any_linear(draw: random.Random) -> tuple[nn.Module, Tensor]:
    module = draw.choice(LINEAR)(6, draw.randint(1, 9), bias=draw.random() < 0.5, device="meta")
    return module, layout(meta(*(draw.randint(1, 4) for _ in range(draw.randint(1, 3))), 6), draw)


def any_average(draw: random.Random) -> tuple[nn.Module, Tensor]:
    size = draw.choice((1, 2, (3, 1), (1, 1), (None, 2)))
    return nn.AdaptiveAvgPool2d(size), layout(meta(2, 6, draw.randint(1, 9), draw.randint(1, 9)), draw)


@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("make", [any_convolution, any_linear, any_average])
def test_modules_give_what_a_call_gives(make: Any, seed: int) -> None:
    module, x = make(random.Random(seed))
    got, want = Shapes().of_module(module, (x,), {}), module(x)
    assert described(got) == described(want)
    rule = MODULES[type(module)]
    assert rule(module, x) in (None, tuple(want.shape))


def any_pair(draw: random.Random) -> tuple[Any, ...]:
    shape = [draw.randint(1, 4) for _ in range(draw.randint(1, 4))]
    other = [draw.choice((n, 1)) for n in shape]
    x, y = meta(*shape, dtype=draw.choice((torch.float32, torch.float64))), meta(*other)
    second = draw.choice((layout(y, draw), layout(y, draw), 2, 0.5, True, meta(*other, dtype=torch.float64)))
    return (x, second) if draw.random() < 0.7 or not isinstance(second, Tensor) else (second, x)


def any_list(draw: random.Random) -> tuple[Any, ...]:
    axis, rank = draw.randint(0, 2), 3
    shapes = [[4, 5, 6] for _ in range(draw.randint(1, 4))]
    for shape in shapes:
        shape[axis] = draw.randint(1, 5)
    parts = [layout(meta(*s, dtype=draw.choice((torch.float32,) * 9 + (torch.float64,))), draw) for s in shapes]
    return parts, draw.choice((axis, axis - rank))


def any_norm(draw: random.Random) -> tuple[Any, ...]:
    over = [draw.randint(1, 4) for _ in range(draw.randint(1, 2))]
    affine = [meta(*over), meta(*over)] if draw.random() < 0.8 else [None, None]
    return layout(meta(2, 5, *over), draw), over, *affine, 1e-5


def any_product(draw: random.Random) -> tuple[Any, ...]:
    x = layout(meta(*(draw.randint(1, 4) for _ in range(draw.randint(1, 3))), 6), draw)
    width = draw.randint(1, 5)
    return x, meta(width, 6), draw.choice((None, meta(width)))


CALLS = (
    *((target, any_pair) for target in (operator.add, operator.mul, torch.add, torch.mul)),
    *((t, lambda draw: any_pair(draw)[:1]) for t in (F.relu, F.relu6, F.silu, F.gelu, F.hardswish, torch.sigmoid)),
    (torch.cat, any_list),
    (torch.concat, any_list),
    (F.layer_norm, any_norm),
    (F.linear, any_product),
)


@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize(("target", "make"), CALLS, ids=lambda x: getattr(x, "__name__", ""))
def test_functions_give_what_a_call_gives(target: Any, make: Any, seed: int) -> None:
    args = make(random.Random(seed))
    got, want = Shapes().of_function(target, args, {}), target(*args)
    assert described(got) == described(want)
    assert FUNCTIONS[target](args, {}) in (None, tuple(want.shape))


@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("target", [operator.iadd, operator.imul])
def test_what_overwrites_keeps_its_shape_or_raises_as_torch_does(target: Any, seed: int) -> None:
    args = any_pair(random.Random(seed))
    try:
        want = described(target(args[0].clone(), args[1]))
    except RuntimeError as error:
        with pytest.raises(type(error)):
            Shapes().of_function(target, args, {})
        assert FUNCTIONS[target](args, {}) is None
    else:
        assert described(Shapes().of_function(target, args, {})) == want


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Conv2d(3, 4, 3, device="meta"), meta(1, 4, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=2, device="meta"), meta(1, 2, 8, 8)),
        (nn.Conv2d(3, 4, 5, device="meta"), meta(1, 3, 4, 8)),
        (nn.Conv2d(3, 4, 3, device="meta"), meta(3, 3, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding=5, padding_mode="reflect", device="meta"), meta(1, 3, 4, 4)),
        (nn.Linear(3, 4, device="meta"), meta(2, 4)),
    ],
)
def test_inputs_that_do_not_fit_raise(module: nn.Module, x: Tensor) -> None:
    assert MODULES[type(module)](module, x) is None
    with pytest.raises((RuntimeError, ValueError)):
        Shapes().of_module(module, (x,), {})


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (torch.cat, ([meta(2, 3), meta(3, 3)], 1)),
        (torch.cat, ([meta(2, 3), meta(2, 3)], 2)),
        (F.linear, (meta(2, 3), meta(4, 5))),
        (F.layer_norm, (meta(2, 3), (4,), meta(4), meta(4))),
        (torch.add, (meta(2, 3), meta(2, 4))),
    ],
)
def test_arguments_that_do_not_fit_raise(target: Any, args: Any) -> None:
    assert FUNCTIONS[target](args, {}) is None
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        Shapes().of_function(target, args, {})


def test_the_plainest_calls_are_worked_out() -> None:
    """A rule that always left the answer to torch would pass the tests above."""
    x = meta(2, 6, 9, 9)
    assert MODULES[nn.Conv2d](nn.Conv2d(6, 8, 3, stride=2, padding=1, device="meta"), x) == (2, 8, 5, 5)
    assert all(MODULES[kind](kind(9, 4, device="meta"), x) == (2, 6, 9, 4) for kind in LINEAR)
    assert MODULES[nn.AdaptiveAvgPool2d](nn.AdaptiveAvgPool2d((1, 3)), x) == (2, 6, 1, 3)
    assert FUNCTIONS[operator.mul]((meta(2, 6, 1, 1), x), {}) == FUNCTIONS[operator.iadd]((x, x), {}) == x.shape
    assert FUNCTIONS[operator.iadd]((meta(2, 6, 1, 1), x), {}) is None
    assert FUNCTIONS[torch.cat]([[x, meta(2, 1, 9, 9)], 1], {}) == (2, 7, 9, 9)
    assert FUNCTIONS[F.relu]((x,), {"inplace": True}) == x.shape
    assert FUNCTIONS[F.layer_norm]((x, (9,)), {"weight": meta(9), "bias": meta(9), "eps": 1e-5}) == x.shape
    assert FUNCTIONS[F.linear]((x, meta(4, 9), meta(4)), {}) == (2, 6, 9, 4)
