"""What makes a cut quick changes nothing: known shapes, graphs without code, ids made like others, copies' modes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.surgery.copies import set_mode
from pipeline.surgery.labels import Field, Labels, distinct, lost
from pipeline.surgery.ledger import Ledger
from pipeline.surgery.shapes import Shapes
from pipeline.surgery.trace import Recorded, trace
from tests.pipeline.surgery.nets import conv, image, net, pooled


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Counted(nn.Linear):
    """How often it was called."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(input)


def test_a_call_like_an_earlier_one_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.surgery.shapes.CONFIGURED", {Counted: ()})
    monkeypatch.setattr(Counted, "calls", 0)
    shapes, first, second = Shapes(), Counted(6, 4, device="meta"), Counted(6, 4, device="meta")
    made = [shapes.of_module(m, (meta(2, 6),), {}) for m in (first, second, first)]
    assert Counted.calls == 1 and all(x.shape == (2, 4) for x in made)
    made[0].unsqueeze_(0)  # what was handed out shares nothing with what is kept
    assert shapes.of_module(first, (meta(2, 6),), {}).shape == (2, 4)
    assert shapes.of_module(first, (meta(3, 6),), {}).shape == (3, 4) and Counted.calls == 2
    assert shapes.of_module(Counted(6, 5, device="meta"), (meta(2, 6),), {}).shape == (2, 5) and Counted.calls == 3
    first.register_forward_hook(lambda module, args, out: out[:1])
    assert shapes.of_module(first, (meta(2, 6),), {}).shape == (1, 4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((meta(2, 3), meta(2, 3)), {}), ((meta(2, 3), meta(1, 3)), {})),
        (((meta(2, 3), 1), {}), ((meta(2, 3), 1.5), {})),
        (((meta(2, 3, dtype=torch.int64), 1), {}), ((meta(2, 3, dtype=torch.int64), True), {})),
        (((meta(2, 3, dtype=torch.int64), 1), {}), ((meta(2, 3, dtype=torch.int64), 1.0), {})),
        (((meta(3, 2),), {"other": meta(3, 2)}), ((meta(3, 2).t(),), {"other": meta(3, 2).t()})),
    ],
)
def test_calls_that_differ_are_made_apart(first: Any, second: Any) -> None:
    shapes = Shapes()
    for args, kwargs in (first, second, first, second):
        got, want = shapes.of_function(torch.add, args, kwargs), torch.add(*args, **kwargs)
        assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)


def test_functions_of_others_and_methods_in_place_are_always_called() -> None:
    shapes, seen = Shapes(), []

    def of_mine(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return x.clone()

    for _ in range(2):
        shapes.of_function(of_mine, (meta(2, 3),), {})
        x = meta(2, 3)
        assert shapes.of_method("t_", (x,), {}) is x and x.shape == (3, 2)
    assert len(seen) == 2


def test_a_traced_graph_runs_and_is_copied_without_code() -> None:
    model = net(lambda m, x: m.fc(pooled(m.conv(x).relu())), conv=conv(3, 6), fc=nn.Linear(6, 4)).eval()
    module = trace(model, image(3, 8)).module
    other = copy.deepcopy(module)
    other.get_parameter("fc.bias").data += 1.0
    x = torch.randn(2, *image(3, 8)[0].shape[1:], dtype=next(model.parameters()).dtype)
    assert torch.equal(module(x), model(x)) and not hasattr(module, "_code")
    assert torch.allclose(other(x), model(x) + 1.0) and isinstance(other, Recorded)


def test_ids_made_like_others_share_their_class_and_classes_are_counted_by_their_first_id() -> None:
    ledger = Ledger()
    a, b = ledger.varying((3,)), ledger.varying((2000,))
    c = ledger.fresh(np.zeros((2, 3)), like=np.stack([a, a]))
    d = ledger.fresh(np.zeros(3), like=c[1])
    assert ledger.classes().tolist() == [*range(2003), 0, 1, 2, 0, 1, 2, 0, 1, 2]
    ledger.tie(d[:2], b[-2:])
    classes = ledger.classes()
    assert classes[b[-2:]].tolist() == [0, 1] and classes[b[0]] == 3 and classes.max() == 2000
    assert ledger.constant(d).tolist() == [0, 0, 0] and not ledger.measured(d).any()


def test_a_module_that_sets_modes_its_own_way_is_asked() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[0].training = False
            return self

    for model in (nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()), Frozen(nn.ReLU(), nn.ReLU())):
        model[0].eval()
        want = [m.training for m in copy.deepcopy(model).train(True).modules()]
        assert [m.training for m in set_mode(model, True).modules()] == want
        assert not any(m.training for m in set_mode(model, False).modules())


def test_distinct_and_lost_agree_with_sets() -> None:
    random = np.random.default_rng(0)
    for ids in (np.arange(5), np.array([4, 1, 4]), random.integers(0, 9, (3, 4)), np.empty(0, np.int64)):
        found, at = distinct(ids)
        assert found.tolist() == sorted(set(ids.ravel().tolist())) and np.array_equal(found[at], ids.ravel())
        before = Labels((ids.size,), (Field((0,), ids.ravel()),))
        for kept in (ids.ravel()[::-1], ids.ravel()[1:], np.array([7])):
            gone = set(ids.ravel().tolist()) - set(kept.tolist())
            assert lost(before, [Labels((len(kept),), (Field((0,), kept),))]).tolist() == sorted(gone)
        assert set(lost(before, []).tolist()) == set(ids.ravel().tolist())
