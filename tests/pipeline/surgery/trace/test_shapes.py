"""What makes a cut quick changes nothing: known shapes, graphs without code, ids made like others."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.labels import Field, Labels, LayoutError, distinct, lost, positions
from pipeline.surgery.channels.ledger import Ledger
from pipeline.surgery.cut import slices as entries
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.rules.layers.weights import not_zero
from pipeline.surgery.trace import Recorded, trace
from pipeline.surgery.trace.copies import graph_module
from pipeline.surgery.trace.shapes import Shapes
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
    monkeypatch.setattr("pipeline.surgery.trace.shapes.CONFIGURED", {Counted: ()})
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


def test_positions_of_ids_that_follow_each_other_and_of_those_that_do_not() -> None:
    random = np.random.default_rng(0)
    for full in (np.arange(7, 27), np.arange(7, 47, 2), random.permutation(20)):
        for _ in range(20):
            kept = full[np.sort(random.choice(20, random.integers(1, 20), replace=False))]
            assert full[positions(full, kept)].tolist() == kept.tolist()
    full = np.arange(7, 27)
    assert positions(full, full[[3, 1]]).tolist() == [3, 1] and positions(full, full[:0]).size == 0
    for strange in ([6, 8], [26, 27], [8, 8]):
        with pytest.raises(LayoutError, match="channels arrive"):
            positions(full, np.array(strange))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_rows_with_anything_in_them_are_found(dtype: Any) -> None:
    rows = np.zeros((10, 3, 4), dtype)
    rows[1, 2, 3] = 1
    rows[2, 0, 0] = -5
    want = {1, 2}
    if dtype is not np.int64:
        rows[3] = -0.0
        subnormal = np.finfo(dtype).smallest_subnormal
        for i, value in enumerate((np.nan, -np.inf, subnormal, subnormal * 2**15)):
            rows[4 + i, 1, 1] = value
            want.add(4 + i)
    which = np.array([9, 7, 6, 5, 4, 3, 2, 1, 0])
    assert {int(i) for i in which[not_zero(rows, which)]} == want
    assert not_zero(rows, which[:0]).size == 0


def cut_of(slices: dict[tuple[str, int], Any]) -> Cut:
    cut = Cut.__new__(Cut)
    cut.slices, cut.grouped = slices, {}
    return cut


def test_tensors_are_cut_the_same_in_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.array([0, 2, 3, 6])
    named = [(f"{i}", torch.randn(7, 5 + i, 3)) for i in range(40)]
    named += [("half", torch.randn(7, 9).bfloat16()), ("count", torch.arange(63).reshape(7, 9))]
    cut = cut_of({(name, 0): index for name, _ in named} | {(name, 1): index[:3] for name, _ in named})
    want = {name: t[index][:, index[:3]] for name, t in named}
    named += [("row", torch.randn(4, 9)), ("whole", torch.randn(2, 3)), ("scalar", torch.tensor(3.0))]
    cut.slices |= {("row", 0): index[2:3], ("row", 1): index}  # one row is left, which cannot be halved
    want |= {"row": named[-3][1][3:4, index], "whole": named[-2][1], "scalar": named[-1][1]}
    for large in (1 << 20, 1):
        monkeypatch.setattr(entries, "LARGE", large)
        monkeypatch.setattr(entries, "ALL", large)
        copies = entries.Copies()
        made = {name: entries.cut_tensor(t, name, cut, copies) for name, t in named}
        copies.make()
        assert all(torch.equal(made[name], want[name]) and made[name].dtype is want[name].dtype for name, _ in named)
        assert all(torch.equal(entries.cut_tensor(t, name, cut), want[name]) for name, t in named)
        assert all(made[name].data_ptr() != t.data_ptr() for name, t in named)


def test_a_tensor_that_stays_whole_keeps_its_memory_format() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    left = entries.cut_tensor(weight, "w", cut_of({}))
    assert torch.equal(left, weight)
    assert left.stride() == weight.stride()


def test_both_threads_make_copies_and_what_fails_in_either_is_raised() -> None:
    def run(failing: bool) -> set[threading.Thread]:
        both, threads, copies = threading.Barrier(2, timeout=30), set(), entries.Copies()

        def copy() -> None:
            both.wait()  # passed only where two threads are here at once
            threads.add(threading.current_thread())
            if failing and threading.current_thread() is not threading.main_thread():
                raise MemoryError("second")

        for _ in range(2):
            copies.add(entries.ALL, copy)
        copies.make()
        return threads

    assert len(run(failing=False)) == 2
    with pytest.raises(MemoryError, match="second"):
        run(failing=True)


def test_a_graph_module_holds_what_fx_would_hold() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
            self.register_buffer("shift", torch.zeros(3), persistent=False)
            self.register_buffer("more", torch.zeros(3))
            self.left_out = nn.Linear(3, 3)

    root = nn.Sequential(Inner(), nn.Sequential(nn.ReLU(), Inner())).eval()
    graph = fx.Graph()
    x = graph.placeholder("x")
    for name in ("0.fc.weight", "0.scale", "0.shift", "1.1.more"):  # a weight before and after its module
        x = graph.call_function(torch.add, (x, graph.get_attr(name)))
    for name in ("1.1.fc", "0.fc", "1.0"):
        x = graph.call_module(name, (x,))
    for name in ("1.1.fc.bias", "0.fc.bias"):
        x = graph.call_function(torch.add, (x, graph.get_attr(name)))
    graph.output(x)
    want, got = fx.GraphModule(root, graph, "Made"), graph_module(root, graph, "Made")
    image = torch.randn(3, 3)
    assert torch.equal(got(image), want(image)) and got.code == want.code and type(got).__name__ == "Made"
    for tensors in ("named_parameters", "named_buffers", "named_modules"):
        assert [n for n, _ in getattr(got, tensors)()] == [n for n, _ in getattr(want, tensors)()]
    assert [(type(m), m.training) for m in got.modules()][1:] == [(type(m), m.training) for m in want.modules()][1:]
    assert got.state_dict().keys() == want.state_dict().keys() and "0.shift" not in got.state_dict()
    assert got.get_submodule("0.fc") is root[0].fc and not got.training


def test_a_ledger_that_grows_forgets_nothing() -> None:
    ledger = Ledger()
    ids = [ledger.fresh(np.full(700, float(i)), np.full(700, i % 2 == 0)) for i in range(12)]
    assert all((ledger.constant(x) == i).all() for i, x in enumerate(ids))
    assert [bool(ledger.measured(x).all()) for x in ids] == [i % 2 == 0 for i in range(12)]
    assert not ledger.measured(ids[1]).any() and ledger.classes().tolist() == list(range(8400))


def test_calls_have_the_names_that_fx_gives_them() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.max, self.Upper, self.lowerUpper = nn.ReLU(), nn.ReLU(), nn.ReLU()
            self.body = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
            self.a_2, self.scale = nn.ReLU(), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Any:
            for call in (self.max, self.Upper, self.lowerUpper, self.a_2, self.a_2, self.body):
                x = call(x)
            return (x * self.scale).relu().add(1).add(2)

    want = [node.name for node in fx.symbolic_trace(Named()).graph.nodes]
    assert [node.name for node in trace(Named().eval(), (torch.ones(1, 3),)).module.graph.nodes] == want
