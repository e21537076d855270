"""Ways in which people write forward, and what becomes of a call that no rule was written for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from einops.layers.torch import Rearrange
from pytest import MonkeyPatch, mark, raises
from torch import Tensor, fx, nn

from pipeline.surgery import load_compact, save_compact, shrink
from pipeline.surgery.channels import analysis
from pipeline.surgery.rules import FUNCTIONS, MODULES
from tests.pipeline.surgery.laws import difference, reasons
from tests.pipeline.surgery.nets_pair import WIDTH, DeadPair

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def typed(x: Tensor) -> Tensor:
    assert isinstance(x, Tensor) and isinstance(x.shape[1], int)
    return x


def rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], int(np.prod(x.shape[1:]))).view(x.shape)


def counted_rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1:].numel()).view(x.shape)


def by_rank(x: Tensor) -> Tensor:
    return {4: torch.neg, 3: torch.abs}[x.ndim](x)


def by_what_it_has(x: Tensor) -> Tensor:
    if hasattr(x, "decompose"):
        raise TypeError("nested tensors are another thing")
    return x


def turned(x: Tensor) -> Tensor:
    return x.T.permute(3, 2, 1, 0) + x.mT.mT


def tokens(x: Tensor) -> Tensor:
    return rearrange(rearrange(x, "b c h w -> b (h w) c"), "b (h w) c -> b c h w", h=8)


def gated(x: Tensor) -> Tensor:
    return x * reduce(x, "b c h w -> b c 1 1", "mean")


@mark.filterwarnings("ignore:The use of `x.T`")
@mark.parametrize(
    "body",
    [typed, rows, counted_rows, by_rank, by_what_it_has, turned, tokens, gated],
    ids=lambda f: f.__name__,
)
def test_both_layers_lose_their_dead_channels(body: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    class Written(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return body(x)

    compact = shrink(Written(), EXAMPLE)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.BOTH
    assert difference(Written(), compact.model, EXAMPLE, batch=5) < 1e-12
    save_compact(compact, tmp_path)
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(load_compact(tmp_path, Written())(x), compact.model(x))


@mark.parametrize(
    "pieces", [lambda x: x.chunk(2, 1), lambda x: x.split([7, 9], 1), lambda x: list(x.tensor_split(2, 1))]
)
@mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_pieces_are_joined_as_one_call_returns_them(pieces: Callable[[Tensor], Any], order: slice) -> None:
    """The first piece keeps a channel at least, which is more than the 6 dead ones."""

    class Joined(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return torch.cat(pieces(x)[order], 1)

    model = Joined()
    compact = shrink(model, EXAMPLE)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.BOTH
    assert difference(model, compact.model, EXAMPLE, batch=5) < 1e-12


def test_layers_of_einops() -> None:
    class Patches(DeadPair):
        def __init__(self) -> None:
            super().__init__()
            self.patches = Rearrange("b c (h p) (w q) -> b (h w) (p q) c", p=2, q=2)

        def between(self, x: Tensor) -> Tensor:
            y: Tensor = rearrange(self.patches(x).mean(2), "b (h w) c -> b c h w", h=4)
            return y

    assert sum(p.numel() for p in shrink(Patches(), EXAMPLE).model.parameters()) == DeadPair.BOTH


def test_stacked_pieces_and_keywords() -> None:
    class Stacked(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return torch.stack(tensors=x.chunk(2, dim=2), dim=2).flatten(2, 3)

    assert sum(p.numel() for p in shrink(Stacked(), EXAMPLE).model.parameters()) == DeadPair.BOTH


def test_modules_made_in_forward() -> None:
    class Sliced(DeadPair):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten())

        def between(self, x: Tensor) -> Tensor:
            y: Tensor = nn.MaxPool2d(2)(self.more[:2](x))
            return y

    assert sum(p.numel() for p in shrink(Sliced(), EXAMPLE).model.parameters()) == DeadPair.BOTH


@dataclass
class Seen:
    features: Tensor


def test_what_an_opaque_module_returns_has_its_own_attributes() -> None:
    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Seen:
            return Seen(x if x.sum() >= 0 else -x)

    class Described(DeadPair):
        def __init__(self) -> None:
            super().__init__()
            self.looking = Looking()

        def between(self, x: Tensor) -> Tensor:
            y: Tensor = self.looking(x).features
            return y

    compact = shrink(Described(), EXAMPLE)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.FIRST
    assert difference(Described(), compact.model, EXAMPLE) < 1e-12


def test_hooks_of_the_network_itself_are_part_of_what_it_computes() -> None:
    class Hooked(DeadPair):
        def between(self, x: Tensor) -> Tensor:
            return x * 2

    def changed() -> nn.Module:
        model = Hooked()
        model.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 3,))
        model.register_forward_pre_hook(lambda m, inputs, options: ((inputs[0] + 1,), options), with_kwargs=True)
        model.register_forward_hook(lambda m, inputs, output: output * 0.5)
        model.register_forward_hook(lambda m, inputs, output: None)  # one that only looks
        return model

    model = changed()
    compact = shrink(model, EXAMPLE)
    assert type(model) is Hooked and "forward" not in vars(model)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.BOTH
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(compact.model(x), 0.5 * Hooked()(3 * x + 1))


class Doubled(DeadPair):
    def between(self, x: Tensor) -> Tensor:
        return torch.neg(x)


def fails(*_: Any) -> Any:
    raise TypeError("unforeseen")


def another_shape(a: analysis.Analysis, node: fx.Node) -> analysis.Result:
    return analysis.unlabelled(torch.empty(1, 2)), lambda cut: None


@mark.parametrize(("rule", "why"), [(fails, "unforeseen"), (another_shape, "its result has another shape")])
def test_a_call_that_its_rule_cannot_take_freezes_its_channels(monkeypatch: MonkeyPatch, rule: Any, why: str) -> None:
    monkeypatch.setitem(FUNCTIONS, "neg", rule)
    compact = shrink(Doubled(), EXAMPLE)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.FIRST
    assert f"the rule for neg cannot take this call ({why})" in reasons(compact.certificate)
    assert difference(Doubled(), compact.model, EXAMPLE) < 1e-12


def test_a_layer_that_its_rule_cannot_take_stays_whole(monkeypatch: MonkeyPatch) -> None:
    """It fails after it entered its channels; they are nobody's then, and must not count as unread."""
    rule = MODULES[torch.nn.Conv2d]

    def late(a: analysis.Analysis, node: fx.Node) -> Any:
        made = rule(a, node)
        return fails() if str(node.target) == "b.0" else made

    monkeypatch.setitem(MODULES, torch.nn.Conv2d, late)
    model = DeadPair()
    compact = shrink(model, EXAMPLE)
    assert compact.model.get_parameter("b.0.weight").shape == (WIDTH, WIDTH, 3, 3)
    assert "the rule for Conv2d cannot take this call (unforeseen)" in reasons(compact.certificate)
    assert compact.certificate["channels"] == {"before": WIDTH, "dead": 0, "after": WIDTH}  # of the other layer
    assert difference(model, compact.model, EXAMPLE) < 1e-12


def test_a_layer_called_twice_is_whole_where_its_rule_cannot_take_one_call(monkeypatch: MonkeyPatch) -> None:
    class Twice(DeadPair):
        def __init__(self) -> None:
            super().__init__()
            self.again = self._layer(WIDTH)[1:]

        def between(self, x: Tensor) -> Tensor:
            y: Tensor = self.again(self.b[0](x))
            return y

    calls: list[fx.Node] = []

    def first_fails(a: analysis.Analysis, node: fx.Node) -> Any:
        calls.append(node)
        return fails() if str(node.target) == "b.0" and len(calls) == 2 else rule(a, node)

    rule = MODULES[torch.nn.Conv2d]
    monkeypatch.setitem(MODULES, torch.nn.Conv2d, first_fails)
    compact = shrink(Twice(), EXAMPLE)
    assert compact.model.get_parameter("b.0.weight").shape == (WIDTH, WIDTH, 3, 3)
    assert difference(Twice(), compact.model, EXAMPLE) < 1e-12


def test_a_call_that_cannot_be_cut_keeps_its_channels(monkeypatch: MonkeyPatch) -> None:
    rule = FUNCTIONS["neg"]

    def uncut(a: analysis.Analysis, node: fx.Node) -> analysis.Result:
        made = rule(a, node)
        assert made is not None
        return made[0], lambda cut: made[1](cut) if cut.keep.all() else fails_below(cut, made)

    def fails_below(cut: Any, made: Any) -> Any:
        return fails() if made[1](cut).shape[1] < WIDTH else made[1](cut)

    monkeypatch.setitem(FUNCTIONS, "neg", uncut)
    compact = shrink(Doubled(), EXAMPLE)
    assert sum(p.numel() for p in compact.model.parameters()) == DeadPair.FIRST
    assert "neg cannot be cut (unforeseen)" in str(compact.certificate)
    assert difference(Doubled(), compact.model, EXAMPLE) < 1e-12


@mark.parametrize("error", [torch.OutOfMemoryError("no memory"), KeyboardInterrupt()])
@mark.parametrize("late", [False, True])
def test_what_is_no_fault_of_the_call_is_raised(monkeypatch: MonkeyPatch, error: BaseException, late: bool) -> None:
    errors = [error]

    def stops(*_: Any) -> Any:
        raise errors.pop()  # once

    def stops_late(a: analysis.Analysis, node: fx.Node) -> Any:
        made = rule(a, node)
        assert made is not None
        return made[0], stops

    rule = FUNCTIONS["neg"]
    monkeypatch.setitem(FUNCTIONS, "neg", stops_late if late else stops)
    with raises(type(error)):
        shrink(Doubled(), EXAMPLE)


def test_a_fault_that_does_not_depend_on_the_cut_is_raised(monkeypatch: MonkeyPatch) -> None:
    """Else the same channels would be asked back for ever."""

    def broken(a: analysis.Analysis, node: fx.Node) -> Any:
        made = rule(a, node)
        assert made is not None
        return made[0], fails

    rule = FUNCTIONS["neg"]
    monkeypatch.setitem(FUNCTIONS, "neg", broken)
    with raises(TypeError, match="unforeseen"):
        shrink(Doubled(), EXAMPLE)
