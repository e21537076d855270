"""Copies of networks are what `copy.deepcopy` makes, walked faster; what was used on the way is not kept alive."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from pipeline.surgery import load_compact, save_compact, shrink
from pipeline.surgery.shrink_training import shrink_training
from pipeline.surgery.trace.copies import meta_twin, modules_by_path, named_tensors, set_mode, shallow_copy
from tests.pipeline.surgery.laws import difference
from tests.pipeline.surgery.nets_pair import DEAD, WIDTH, DeadPair


class Noted(nn.Module):
    """Keeps values of many kinds, some of them shared with another."""

    made: ClassVar[weakref.WeakSet[Noted]] = weakref.WeakSet()

    def __new__(cls) -> Noted:
        module = super().__new__(cls)
        cls.made.add(module)
        return module

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.numbers, self.pair = [1, 2], (1, (2, "a"))
        self.empty: list[int] = []
        self.table: dict[str, Any] = {"a": [torch.ones(2)]}
        self.seen: set[int] = {1}
        self.kind, self.dtype = nn.ReLU, torch.float16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).relu()  # type: ignore[no-any-return]


def pair() -> nn.Sequential:
    first, second = Noted(), Noted()
    second.numbers, second.empty, second.fc.weight = first.numbers, first.empty, first.fc.weight
    first.register_forward_hook(lambda module, args, out: out)
    return nn.Sequential(first, second)


def test_a_copy_has_its_own_of_all_that_can_change_and_shares_what_was_shared() -> None:
    model: Any = pair()
    made: Any = shallow_copy(model)
    for old, new in zip(modules_by_path(model).values(), modules_by_path(made).values(), strict=True):
        assert type(new) is type(old) and new is not old and list(vars(new)) == list(vars(old))
        for key, value in vars(old).items():
            mutable = isinstance(value, list | dict | set)
            assert (vars(new)[key] is value) == (not mutable and not isinstance(value, nn.Module)), key
            assert type(vars(new)[key]) is type(value)
    first, second = made
    assert first.numbers is second.numbers == [1, 2] and first.empty is second.empty == []
    assert first.pair == (1, (2, "a")) and first.kind is nn.ReLU and first.dtype is torch.float16
    assert torch.equal(first.table["a"][0], torch.ones(2)) and first.table["a"][0] is not model[0].table["a"][0]
    assert first.fc.weight is second.fc.weight is model[0].fc.weight
    assert len(first._forward_hooks) == 1 and not second._forward_hooks
    second.register_forward_hook(lambda module, args, out: out)
    assert not model[1]._forward_hooks and not second.fc._forward_hooks


def test_a_twin_on_meta_shares_its_tensors_as_the_network_does() -> None:
    twin: Any = meta_twin(pair())
    assert twin[0].fc.weight is twin[1].fc.weight and isinstance(twin[0].fc.weight, nn.Parameter)
    assert all(t.is_meta for _, t in named_tensors(modules_by_path(twin)))


def test_no_copy_outlives_the_cut_that_made_it() -> None:
    model: Any = pair()
    gc.collect()
    before = len(Noted.made)
    gc.disable()
    try:
        compact = shrink(model, (torch.ones(1, 4),), verify=False)
        assert len(Noted.made) == before and compact.model is not None
    finally:
        gc.enable()


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


def test_tensors_have_the_names_torch_gives_them() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
    second.weight = first.weight
    root = nn.Sequential(nn.BatchNorm2d(3), first, nn.Sequential(second))
    root.register_buffer("shift", torch.zeros(3))
    for all_names in (True, False):
        want = [*root.named_parameters(remove_duplicate=not all_names), *root.named_buffers()]
        got = named_tensors(dict(root.named_modules(remove_duplicate=not all_names)))
        assert {n: id(t) for n, t in want}.items() <= {n: id(t) for n, t in got}.items()
        assert not all_names or [n for n, _ in got] == [n for n, _ in want]


@pytest.mark.parametrize("every", [False, True])
def test_modules_are_those_that_torch_names_in_its_order(every: bool) -> None:
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Tanh()), "c": shared[0]})
    model.register_module("none", None)
    assert list(modules_by_path(model, every).items()) == list(model.named_modules(remove_duplicate=not every))


def test_compiled_parts_are_what_they_were_made_of(tmp_path: Path) -> None:
    net = DeadPair()
    net.a, net.b[0] = torch.compile(net.a), torch.compile(net.b[0])  # type: ignore[assignment]
    example, x = (torch.zeros(2, 3, 8, 8),), torch.randn(2, 3, 8, 8)
    compact = shrink(net, example)
    assert compact.certificate["channels"] == {"before": 2 * WIDTH, "dead": 2 * DEAD, "after": 2 * (WIDTH - DEAD)}
    assert set(compact.plan.layers) == {"a.0.weight", "b.0.weight"}
    assert difference(DeadPair(), compact.model, example) < 1e-12
    save_compact(compact, tmp_path)
    for source in (net, DeadPair()):
        assert torch.equal(load_compact(tmp_path, source)(x), compact.model.eval()(x))
    assert type(net.a) is type(torch.compile(nn.Linear(1, 1)))  # the network given is left as it was
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    resumed = shrink_training(net.train(), (torch.randn(4, 3, 8, 8),), optimizer)
    assert resumed.compact.model.get_parameter("a.0.weight").shape[0] == WIDTH - DEAD
    trained = {id(p) for p in resumed.optimizer.param_groups[0]["params"]}
    assert {id(p) for p in resumed.compact.model.parameters()} == trained
