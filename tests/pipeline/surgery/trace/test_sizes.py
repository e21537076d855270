"""Tensors that forward makes from sizes, and tensors that a network keeps without registering them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from pytest import MonkeyPatch, mark, raises
from torch import Tensor, nn

from pipeline.surgery import load_compact, save_compact, shrink
from pipeline.surgery.trace import trace
from pipeline.surgery.trace.copies import meta_twin
from pipeline.surgery.trace.sizes import FACTORIES, METHODS, sizes_followed
from pipeline.surgery.trace.tracer import ShapeTracer
from runtime.errors import UserError
from tests.pipeline.surgery.nets_pair import WIDTH, DeadPair

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


class Zeros(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        return x * (1 + torch.zeros(x.shape[0], 1, 1, x.shape[3]))


class Ones(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.ones(x.size(0), 1, 1, 1, device=x.device, dtype=x.dtype)


class Ramp(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0, 1, x.shape[-1])


class Mesh(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        return x * (rows + 2 * columns)


class Masked(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.triu(torch.ones(x.shape[2], x.shape[3]))


class Expanded(DeadPair):
    """A tensor that is neither parameter nor buffer, expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(1, WIDTH, 1, 1)

    def between(self, x: Tensor) -> Tensor:
        return x * self.scale.expand(x.shape[0], -1, -1, -1)


@mark.parametrize("network", [Zeros, Ones, Ramp, Mesh, Masked, Expanded])
def test_tensors_made_from_sizes_are_followed(network: type[DeadPair], tmp_path: Path) -> None:
    model = network()
    compact = shrink(model, EXAMPLE)
    assert [f["where"] for f in compact.certificate["frozen"]] == ["output"]
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.BOTH
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(compact.model(x), model(x), rtol=1e-4, atol=1e-4)
    save_compact(compact, tmp_path)
    assert torch.equal(load_compact(tmp_path, network())(x), compact.model(x))


def test_a_whole_shape_is_a_size_too() -> None:
    class Whole(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return x * torch.ones(x.shape)

    assert sum(p.numel() for p in shrink(Whole(), EXAMPLE).model.parameters()) == DeadPair.FIRST


def test_functions_are_as_they_were_afterwards() -> None:
    before = {name: getattr(torch, name) for name in FACTORIES}
    names: dict[str, object] = {}
    methods = {name: getattr(Tensor, name) for name in METHODS}
    with raises(ZeroDivisionError), sizes_followed([names]):
        assert torch.zeros(2, 3).expand(4, 2, 3).shape == (4, 2, 3)
        assert torch.zeros is not before["zeros"] and "len" in names
        raise ZeroDivisionError
    assert {name: getattr(torch, name) for name in FACTORIES} == before
    assert {name: getattr(Tensor, name) for name in METHODS} == methods
    assert not set(METHODS) & set(vars(Tensor)) and not names


class Counted(DeadPair):
    """`len(x)` where a size belongs, and as a number: neither is that of the example."""

    def between(self, x: Tensor) -> Tensor:
        return x.view(len(x), len(x[0]), -1).view(x.shape) * len(x)


def test_the_length_of_a_tensor_is_no_constant() -> None:
    compact = shrink(Counted(), EXAMPLE)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.BOTH
    assert compact.certificate["law"]["inputs"] == ("random, batch 2", "random, batch 3")


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def one_by_one(net: Any, x: Tensor) -> Tensor:
    return torch.stack([image * 2 for image in x])


def counted(net: Any, x: Tensor) -> Tensor:
    return torch.stack([x[i] * 2 for i in range(x.shape[0])])


def averaged(net: Any, x: Tensor) -> Tensor:
    return x - torch.stack([image for image in x]).mean(0, keepdim=True)  # noqa: C416


def scaled(net: Any, x: Tensor) -> Tensor:
    return x * float(x.shape[0])


def among_opaque(net: Any, x: Tensor) -> Tensor:
    return torch.stack([net.opaque(x)[i] for i in range(x.shape[0])])


def one_apart(net: Any, x: Tensor) -> Tensor:
    return x if x.shape[0] == 1 else 2 * x


def many_apart(net: Any, x: Tensor) -> Tensor:
    return 3 * x if len(x) > 32 else 2 * x


def test_what_runs_on_zeros_never_runs_on_many() -> None:
    seen: list[int] = []

    class Recording(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                raise ValueError("zeros only")
            seen.append(len(x))
            return x

    class Beside(DeadPair):
        def __init__(self) -> None:
            super().__init__()
            self.opaque = Recording()

        def between(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.opaque(0 * x) * float(x.shape[2])
            return y

    shrink(Beside(), EXAMPLE, verify=False)
    assert sorted(seen) == [1, 2, 2, 3]  # the example, other numbers of images, and images of another size


def test_a_tracer_that_is_kept_does_not_keep_the_network() -> None:
    """einops remembers shapes it was asked for, and these refer to the tracer."""
    tracer = ShapeTracer(EXAMPLE, model := Ones())
    tracer.trace(meta_twin(model))
    assert model not in vars(tracer).values()


def test_code_that_refuses_a_number_of_images_still_does() -> None:
    class Several(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            if len(x) < 2:
                raise ValueError("several images")
            return x

    compact = shrink(Several(), EXAMPLE)
    with raises(ValueError, match="several images"):
        compact.model(torch.zeros(1, 3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(compact.model(x), Several()(x))


@mark.parametrize("batch", [1, 2])
@mark.parametrize("body", [one_by_one, counted, averaged, scaled, among_opaque, one_apart, many_apart])
def test_code_that_depends_on_the_number_of_images_is_frozen_as_a_whole(
    body: Callable[[Any, Tensor], Tensor], batch: int, tmp_path: Path
) -> None:
    class Dependent(DeadPair):
        def __init__(self) -> None:
            super().__init__()
            self.opaque = Opaque()

        def between(self, x: Tensor) -> Tensor:
            return body(self, x)

    compact = shrink(Dependent(), (torch.zeros(batch, 3, 8, 8),))
    assert [f["reason"] for f in compact.certificate["frozen"]][:1] == ["Dependent computes for one batch size"]
    save_compact(compact, tmp_path)
    for count in (1, 5, 40):
        x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        assert torch.equal(compact.model(x), Dependent()(x))
        assert torch.equal(load_compact(tmp_path, Dependent())(x), compact.model(x))


def checked(net: Any, x: Tensor) -> Tensor:
    assert x.shape[0] > 0 and x.shape == (2 * x).shape
    return x


def channel_by_channel(net: Any, x: Tensor) -> Tensor:
    return torch.stack([x[:, i] for i in range(x.shape[1])], 1)


@mark.parametrize("body", [checked, channel_by_channel])
def test_code_that_asks_and_does_the_same_is_followed(body: Callable[[Any, Tensor], Tensor]) -> None:
    class Asking(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return body(self, x)

    reasons = str(shrink(Asking(), EXAMPLE).certificate["frozen"])
    assert "batch size" not in reasons and "cannot be traced" not in reasons


def test_a_network_is_followed_alike_each_time() -> None:
    """PyTorch looks once in a process which functions are methods of tensors, maybe while stand-ins are there."""
    first, second = (trace(Expanded(), EXAMPLE).module.graph for _ in range(2))
    assert [(n.op, n.target) for n in first.nodes] == [(n.op, n.target) for n in second.nodes]
    assert ("call_method", "expand") in [(n.op, n.target) for n in second.nodes]


@mark.parametrize("count", [lambda x: x.numel(), lambda x: prod(x.shape), lambda x: x.shape[1] * x.size(0)])
def test_a_number_of_widths_and_images_keeps_the_channels_it_counts(count: Callable[[Tensor], int]) -> None:
    class Scaled(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return x * count(x)

    compact = shrink(Scaled(), EXAMPLE)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.FIRST
    assert "is computed from widths and the number of images" in str(compact.certificate)


def test_a_number_of_widths_alone_keeps_its_value() -> None:
    class Scaled(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return x / x.shape[1] + x / prod(x.shape[1:])

    assert sum(p.numel() for p in shrink(Scaled(), EXAMPLE).model.parameters()) == DeadPair.BOTH


def test_an_output_that_is_no_batch_may_look_like_one() -> None:
    class Anchored(DeadPair):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), torch.linspace(0, 1, 5)[None]

    compact = shrink(Anchored(), (torch.zeros(1, 3, 8, 8),))
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.BOTH


def test_a_compact_network_that_takes_one_number_of_images_is_told_in_one_line(monkeypatch: MonkeyPatch) -> None:
    class OneByOne(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return x + one_by_one(self, x)

    monkeypatch.setattr("pipeline.surgery.trace.any_batch", lambda *_: True)
    with raises(UserError, match="the compact network raises on random, batch 3 inputs: The size of tensor"):
        shrink(OneByOne(), EXAMPLE)
