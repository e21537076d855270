"""What people write in forward: numbers from sizes and buffers, caches, types, hooks, inputs that are no batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from pipeline.surgery import Compact, load_compact, save_compact, shrink


def dead_rows(layer: Any, count: int) -> Any:
    """The layer with its first `count` outputs zero."""
    with torch.no_grad():
        layer.weight[:count] = 0
        if layer.bias is not None:
            layer.bias[:count] = 0
    return layer


class Pair(nn.Module):
    """Two 1x1 convolutions, 2 -> 6 -> 3, three channels between them dead, and code of the test's between them."""

    def __init__(self, between: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second = dead_rows(nn.Conv2d(2, 6, 1), 3), nn.Conv2d(6, 3, 1)
        self.between = between
        self.register_buffer("scale", torch.tensor([2.0, 0.5]))
        self.plain = torch.tensor([2.0, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.between(self, self.first(x)))
        return y


def left_of(compact: Compact) -> int:
    return int(compact.certificate["channels"]["after"])


def answers_alike(model: nn.Module, compact: Compact, *inputs: Any) -> bool:
    with torch.no_grad():
        return torch.allclose(model(*inputs), compact.model(*inputs), atol=1e-5)


@pytest.mark.parametrize(
    "between",
    [
        lambda m, y: y * float(m.scale[1]),
        lambda m, y: y * m.scale[0].item(),
        lambda m, y: y + 1 if m.scale[1] > 1 else y * 3,
        lambda m, y: y + torch.full((1,), m.scale[0]),
        lambda m, y: y * y.new_full((1,), m.scale[0]),  # as YOLO makes its anchors
        lambda m, y: y * y.new_full((1,), m.plain[0]),
        lambda m, y: y / math.floor(y.shape[3] / 2),
        lambda m, y: y * float(np.log(y.shape[2])),
        lambda m, y: y / torch.tensor(y.shape[1]).sqrt(),
    ],
)
def test_code_on_buffers_and_sizes_gets_real_numbers(between: Any) -> None:
    model, x = Pair(between).eval(), torch.randn(2, 2, 4, 4)
    compact = shrink(model, (x,))
    assert left_of(compact) == 3
    assert answers_alike(model, compact, x)


def test_a_branch_on_the_values_of_an_input_or_of_a_parameter_is_no_number() -> None:
    for between in (lambda m, y: y if y.sum() > 0 else -y, lambda m, y: y if m.first.weight.sum() > 0 else -y):
        compact = shrink(Pair(between).eval(), (torch.randn(2, 2, 4, 4),), verify=False)
        assert "cannot be traced" in compact.certificate["frozen"][0]["reason"]
        assert compact.model.get_parameter("network.first.weight").shape[0] == 6


def elsewhere(source: str) -> Any:
    """A function of a module that nobody imported."""
    return FunctionType(compile(f"lambda x: {source}", "elsewhere", "eval").co_consts[0], {"torch": torch})


@pytest.mark.parametrize(
    "asked",
    ["isinstance(x, torch.Tensor)", "torch.is_tensor(x)", "x.__class__ is torch.Tensor", "x.device.type == 'cpu'"],
)
def test_questions_about_the_type_are_answered_for_the_value(asked: str) -> None:
    ask = elsewhere(asked)
    model, x = Pair(lambda m, y: y if ask(y) else y * 2).eval(), torch.randn(2, 2, 4, 4)
    compact = shrink(model, (x,))
    assert left_of(compact) == 3
    assert answers_alike(model, compact, x)
    assert isinstance.__module__ == "builtins"  # Python's own again


class Remembering(nn.Module):
    """Keeps a ramp over the images' columns, and for how many images it made it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dead_rows(nn.Conv2d(2, 6, 1), 3), nn.Conv2d(6, 3, 1)
        self.made_for: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        if self.made_for != y.shape:
            self.made_for, self.ramp = y.shape, torch.arange(y.shape[-1], dtype=y.dtype)
        return y + self.ramp


def test_what_an_earlier_forward_left_behind_decides_nothing(tmp_path: Path) -> None:
    model, x = Remembering().eval(), torch.randn(2, 2, 4, 4)
    fresh = shrink(model, (x,))
    model(x)
    used = shrink(model, (x,))
    assert left_of(fresh) == left_of(used) == 3
    assert [n.target for n in fresh.model.graph.nodes] == [n.target for n in used.model.graph.nodes]
    save_compact(used, tmp_path)
    assert torch.equal(load_compact(tmp_path, Remembering())(x), used.model(x))


@pytest.mark.parametrize(
    "between", [lambda m, y: y / float(y.shape[3]), lambda m, y: -y if y.shape[2] > 6 else y,
                lambda m, y: F.pad(y, (0, y.shape[3] % 2)) if y.shape[3] % 2 else y],
)  # fmt: skip
def test_another_image_size_is_refused_where_the_code_computes_with_it(between: Any) -> None:
    model = Pair(between).eval()
    compact = shrink(model, (torch.zeros(2, 2, 6, 6),))
    assert answers_alike(model, compact, torch.randn(3, 2, 6, 6))
    with pytest.raises(ValueError, match=r"cut for inputs of size 2x6x6, .* this one is 2x9x9"):
        compact.model(torch.zeros(1, 2, 9, 9))


def test_another_image_size_is_taken_where_the_code_does_the_same() -> None:
    model = Pair(lambda m, y: y if y.shape[3] > 2 else -y).eval()
    compact = shrink(model, (torch.zeros(2, 2, 6, 6),))
    assert answers_alike(model, compact, torch.randn(1, 2, 9, 5))
    assert left_of(compact) == 3


def test_a_branch_that_moves_no_value_is_no_other_network() -> None:
    model = Pair(lambda m, y: y.contiguous() if y.shape[0] > 60 else y).eval()
    compact = shrink(model, (torch.zeros(1, 2, 4, 4),))
    assert left_of(compact) == 3
    assert answers_alike(model, compact, torch.randn(64, 2, 4, 4))


class Steps(nn.Module):
    """Rows first, with a row of parameters for each; and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dead_rows(nn.Linear(4, 6), 2), nn.Linear(6, 3)
        self.rows = nn.Parameter(torch.zeros(5, 1, 6))

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        y: Tensor = self.second((self.first(x) + self.rows) * factor)
        return y


def test_the_law_holds_on_the_shapes_of_the_example_where_the_network_takes_no_others() -> None:
    inputs = (torch.randn(5, 2, 4), torch.tensor(1.5))
    compact = shrink(Steps().eval(), inputs)
    assert compact.certificate["law"]["inputs"] == ("random, batch 5",)
    whole = shrink(Pair(lambda m, y: y).eval(), (torch.zeros(1, 2, 4, 4),))
    assert whole.certificate["law"]["inputs"] == ("random, batch 1", "random, batch 2")


class Named(nn.Module):
    """Takes its images by name, beside what may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dead_rows(nn.Conv2d(2, 6, 1), 3), nn.Conv2d(6, 3, 1)

    def forward(self, batch: dict[str, Tensor], mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.second(self.first(batch["image"]))
        return y if mask is None else y * mask


def test_inputs_may_be_containers_and_nothing(tmp_path: Path) -> None:
    model, batch = Named().eval(), {"image": torch.randn(2, 2, 4, 4)}
    inputs: Any = (batch, None)
    compact = shrink(model, inputs)
    assert left_of(compact) == 3
    assert answers_alike(model, compact, batch, None)
    save_compact(compact, tmp_path)
    assert torch.equal(load_compact(tmp_path, model)(batch, None), compact.model(batch, None))


def test_a_compiled_network_is_the_network_it_was_made_of() -> None:
    model = Pair(lambda m, y: y.relu()).eval()
    compact = shrink(torch.compile(model), (torch.zeros(2, 2, 4, 4),))  # type: ignore[arg-type]
    assert left_of(compact) == 3
    assert compact.plan.network.endswith("Pair")


def test_a_network_that_asks_for_its_mode_is_noted() -> None:
    class Auxiliary(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2 if self.training else 1)

    (note,) = shrink(Auxiliary(lambda m, y: y).eval(), (torch.zeros(2, 2, 4, 4),)).certificate["notes"]
    assert note.startswith("the code of Auxiliary asks whether it is in training mode")
    assert shrink(Pair(lambda m, y: y).eval(), (torch.zeros(2, 2, 4, 4),)).certificate["notes"] == []


@pytest.mark.parametrize("hook", [lambda m, i, o: None, lambda m, i, o: o * 0.5])
def test_hooks_on_a_layer_are_a_part_of_it(hook: Any) -> None:
    model, x = Pair(lambda m, y: y.relu()).eval(), torch.randn(2, 2, 4, 4)
    model.first.register_forward_hook(hook)
    compact = shrink(model, (x,))
    assert left_of(compact) == 3
    assert answers_alike(model, compact, x)


def test_weights_that_a_hook_masks_go() -> None:
    model, x = Pair(lambda m, y: y.relu()).eval(), torch.randn(2, 2, 4, 4)
    mask = torch.ones(6, 2, 1, 1)
    mask[3:5] = 0
    prune.custom_from_mask(model.first, "weight", mask)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.first.bias[3:5] = 0
    compact = shrink(model, (x,))
    assert left_of(compact) == 1
    assert answers_alike(model, compact, x)


def test_channels_that_nobody_reads_go() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 3, 3, padding=1)).eval()
    with torch.no_grad():
        model[3].get_parameter("weight")[:, [1, 4]] = 0
    compact = shrink(model, (torch.randn(2, 2, 6, 6),))
    assert compact.plan.layers == {"0.weight": (0, 2, 3, 5)}
    assert answers_alike(model, compact, torch.randn(3, 2, 6, 6))


class Heads(nn.Module):
    """Attention of 3 heads of 4, written with a product; its projections lose what `rows` names."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        for name, dead in rows.items():
            with torch.no_grad():
                getattr(self, name).weight[dead] = 0
                getattr(self, name).bias[dead] = 0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(x.shape[0], x.shape[1], -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


HEAD, DIMENSION = torch.arange(12) < 4, torch.arange(12) % 4 == 1


@pytest.mark.parametrize(
    ("rows", "after"),
    [
        ({"q": HEAD, "k": HEAD, "v": HEAD}, 24),
        ({"q": DIMENSION, "k": DIMENSION, "v": DIMENSION}, 27),
        ({"v": HEAD}, 36),
    ],
)
def test_heads_and_dimensions_of_heads_go_where_all_projections_agree(
    rows: dict[str, Tensor], after: int, tmp_path: Path
) -> None:
    model, x = Heads(rows).eval(), torch.randn(2, 5, 12)
    compact = shrink(model, (x,))
    assert left_of(compact) == after
    save_compact(compact, tmp_path)
    assert torch.equal(load_compact(tmp_path, Heads({}))(x), compact.model(x))


def test_channels_that_cannot_be_laid_out_stay_and_nothing_raises() -> None:
    """A shuffle of two groups of two, multiplied by channels in order, in front of a grouped convolution."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.grouped, self.out = nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)
            with torch.no_grad():
                for channel in (0, 3):
                    self.a.weight[channel] = 0
                    self.a.get_parameter("bias")[channel] = 0

        def forward(self, x: Tensor) -> Tensor:
            n, _, h, w = x.shape
            shuffled = self.a(x).view(n, 2, 2, h, w).transpose(1, 2).reshape(n, 4, h, w)
            y: Tensor = self.out(self.grouped(shuffled * self.b(x)))
            return y

    model, x = Shuffled().eval(), torch.randn(2, 3, 4, 4)
    compact = shrink(model, (x,))
    assert answers_alike(model, compact, x)
    assert compact.model.get_parameter("out.weight").shape[:2] == (2, 4)


@dataclass
class Answer(dict[str, Tensor]):
    """A container of a library's own, as Hugging Face's are."""

    maps: Tensor
    scores: Tensor


class Scored(NamedTuple):
    maps: Tensor
    scores: Tensor


class Answers(Pair):
    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x)
        return self.between(hidden[:, 4:], self.second(hidden))


@pytest.mark.parametrize("container", [lambda x, y: Answer(maps=x, scores=y), Scored])
def test_containers_of_a_librarys_own_class_are_the_outputs(container: Any) -> None:
    compact = shrink(Answers(container).eval(), (torch.zeros(2, 2, 4, 4),))
    (row,) = compact.certificate["frozen"]
    assert row["reason"] == "output of the network" and row["channels"] == 5
    assert compact.certificate["channels"] == {"before": 6, "dead": 3, "after": 3}


@pytest.mark.parametrize("shape", [(200, 6), (1, 6, 20, 20)])
def test_large_tables_that_are_zero_where_channels_are_dead_let_them_go(shape: tuple[int, ...]) -> None:
    """As positions of a transformer are, which are added to its stream."""

    class Positions(Pair):
        def __init__(self) -> None:
            super().__init__(lambda m, y: y + m.table if m.table.dim() == 4 else y + m.table.mT[None, :, :, None])
            self.table = nn.Parameter(torch.randn(shape))
            with torch.no_grad():
                self.table.movedim(1, 0)[:3] = 0

    side = 20 if len(shape) == 4 else 200
    model, x = Positions().eval(), torch.randn(2, 2, side, 20)
    compact = shrink(model, (x,))
    assert left_of(compact) == 3 and answers_alike(model, compact, x)


class Open(torch.autograd.Function):
    """ReLU with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


def test_functions_with_gradients_of_their_own_are_followed() -> None:
    model, x = Pair(lambda m, y: Open.apply(y)).eval(), torch.randn(2, 2, 4, 4)
    compact = shrink(model, (x,))
    assert left_of(compact) == 3 and answers_alike(model, compact, x)
    assert Open.apply(x).equal(x.clamp(min=0))  # as before
