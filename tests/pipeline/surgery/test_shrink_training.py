"""Optimizer, schedule and averages go along with the cut: the next steps are those of the network that was not cut."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.surgery.shrink_training import Resumed, shrink_training
from runtime.errors import UserError
from tests.pipeline.surgery_training.nets import batches, kill, residual, same_as_left, state_left, step

Parameters = Iterator[nn.Parameter]
WAYS: dict[str, dict[str, bool]] = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p, **way: SGD(p, 0.05, weight_decay=1e-3, **way),
    "momentum": lambda p, **way: SGD(p, 0.05, momentum=0.9, dampening=0.1, **way),
    "nesterov": lambda p, **way: SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, **way),
    "adam": lambda p, **way: Adam(p, 1e-3, amsgrad=True, **way),
    "adam with decay": lambda p, **way: Adam(p, 1e-3, weight_decay=1e-3, **way),
    "adamw": lambda p, **way: AdamW(p, 1e-3, weight_decay=1e-2, **way),
}


def momentum(parameters: Any) -> SGD:
    return SGD(parameters, 0.05, momentum=0.9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_next_steps_are_those_of_the_dense_network(kind: str, way: str) -> None:
    model = residual().train()
    optimizer = OPTIMIZERS[kind](model.parameters(), **WAYS[way])
    data = batches(6)
    for batch in data[:2]:
        step(model, optimizer, batch)
    resumed = shrink_training(model, (data[2][0],), optimizer)
    compact = resumed.compact.model
    assert resumed.compact.certificate["channels"] == {"before": 108, "dead": 14, "after": 94}
    assert resumed.step_rel_diff is not None and resumed.step_rel_diff < 1e-9
    assert same_as_left(model, compact) == 0.0 and state_left(model, optimizer, compact, resumed.optimizer) == 0.0
    for batch in data[2:]:
        expected = step(model, optimizer, batch)
        assert step(compact, resumed.optimizer, batch) == pytest.approx(expected, rel=1e-6)
        assert same_as_left(model, compact) < 1e-6
        assert state_left(model, optimizer, compact, resumed.optimizer) < 1e-6


@pytest.mark.parametrize("kind", ["nesterov", "adamw"])
def test_the_next_step_holds_with_momentum_left_on_what_goes(kind: str) -> None:
    """Channels that lived until now: their momentum moves them on, but not before the next step is computed."""
    model = residual().train()
    kill(model, {"bn": [0, 3, 4]}, beta=0.2)
    optimizer = OPTIMIZERS[kind](model.parameters())
    data = batches(5)
    for batch in data[:3]:
        step(model, optimizer, batch)
    kill(model, {"bn": [0, 3, 4]})
    moving = optimizer.state[model.get_parameter("bn.bias")]
    assert max(float(v[3].abs()) for v in moving.values() if isinstance(v, Tensor) and v.dim()) > 0
    resumed = shrink_training(model, (data[3][0],), optimizer)
    assert step(resumed.compact.model, resumed.optimizer, data[3]) == pytest.approx(step(model, optimizer, data[3]))
    assert same_as_left(model, resumed.compact.model) < 1e-6


def test_what_is_given_stays_untouched() -> None:
    model = residual().train()
    optimizer = momentum(model.parameters())
    data = batches(3)
    step(model, optimizer, data[0])
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    resumed = shrink_training(model, (data[1][0],), optimizer)
    step(resumed.compact.model, resumed.optimizer, data[1])
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items()) and model.training
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True) if p.grad is not None)
    for index, kept in state["state"].items():
        assert torch.equal(kept["momentum_buffer"], optimizer.state_dict()["state"][index]["momentum_buffer"])
    assert resumed.optimizer is not optimizer


def test_groups_options_and_foreign_parameters_stay() -> None:
    model = residual().train()
    outside = nn.Parameter(torch.ones(3))
    norms = [p for n, p in model.named_parameters() if "bn" in n]
    others = [p for n, p in model.named_parameters() if "bn" not in n]
    optimizer = SGD(
        [
            {"params": others, "weight_decay": 1e-3},
            {"params": norms, "lr": 0.3, "nesterov": True, "note": "norms"},
            {"params": [outside], "lr": 0.7},
        ],
        lr=0.1,
        momentum=0.8,
    )
    outside.grad = torch.full((3,), 2.0)
    step_once = batches(1)[0]
    optimizer.step()
    resumed = shrink_training(model, (step_once[0],), optimizer)
    groups = resumed.optimizer.param_groups
    now = {id(p): n for n, p in resumed.compact.model.named_parameters()}
    assert [len(g["params"]) for g in groups] == [len(others), len(norms), 1]
    assert [now[id(p)] for p in groups[1]["params"]] == [n for n, _ in model.named_parameters() if "bn" in n]
    assert groups[2]["params"][0] is outside
    assert torch.equal(resumed.optimizer.state[outside]["momentum_buffer"], torch.full((3,), 2.0))
    for old, new in zip(optimizer.param_groups, groups, strict=True):
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}


SCHEDULES: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=12),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "two in a row": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.8)], [3]
    ),
}


@pytest.mark.parametrize("done", [0, 1, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_goes_on_where_it_was(name: str, done: int) -> None:
    """Without a warning too where the schedule has not stepped yet: warnings are errors here."""
    model = residual().train()
    optimizer = momentum(model.parameters())
    schedule = SCHEDULES[name](optimizer)
    data = batches(8)
    for batch in data[:done]:
        step(model, optimizer, batch)
        schedule.step()
    resumed = shrink_training(model, (data[done][0],), optimizer, scheduler=schedule, verify=False)
    assert resumed.scheduler is not None and resumed.scheduler.optimizer is resumed.optimizer
    seen = []
    for batch in data[done : done + 4]:
        seen.append((resumed.optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["lr"]))
        step(model, optimizer, batch)
        schedule.step()
        step(resumed.compact.model, resumed.optimizer, batch)
        resumed.scheduler.step()
    assert all(ours == theirs for ours, theirs in seen) and len({ours for ours, _ in seen}) > 1
    assert resumed.scheduler.last_epoch == schedule.last_epoch == done + 4


def test_a_plateau_schedule_keeps_its_best() -> None:
    model = residual().train()
    optimizer = momentum(model.parameters())
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    schedule.step(0.5)
    schedule.step(0.6)
    resumed = shrink_training(model, (batches(1)[0][0],), optimizer, scheduler=schedule, verify=False)
    made = resumed.scheduler
    assert isinstance(made, lr_scheduler.ReduceLROnPlateau) and (made.best, made.num_bad_epochs) == (0.5, 1)
    made.step(0.7)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.005) and optimizer.param_groups[0]["lr"] == 0.05


def averages_of(model: nn.Module) -> list[nn.Module]:
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    return [ema, AveragedModel(model, use_buffers=True), copy.deepcopy(model).eval()]


def test_averages_are_cut_alike_and_go_on() -> None:
    model = residual().train()
    optimizer = momentum(model.parameters())
    averages, data = averages_of(model), batches(5)
    for batch in data[:3]:
        step(model, optimizer, batch)
        for average in averages[:2]:
            assert isinstance(average, AveragedModel)
            average.update_parameters(model)
    resumed = shrink_training(model, (data[3][0],), optimizer, averages=averages)
    assert [isinstance(a, AveragedModel) for a in resumed.averages] == [True, True, False]
    for before, after in zip(averages, resumed.averages, strict=True):
        assert not isinstance(before, AveragedModel) or before.module is not after.module
        inner = [a.module if isinstance(a, AveragedModel) else a for a in (before, after)]
        assert same_as_left(inner[0], inner[1]) == 0.0
    assert not resumed.averages[2].training and resumed.averages[2](data[0][0]).shape == (6, 5)
    step(model, optimizer, data[3])
    step(resumed.compact.model, resumed.optimizer, data[3])
    for before, after in zip(averages[:2], resumed.averages[:2], strict=True):
        assert isinstance(before, AveragedModel) and isinstance(after, AveragedModel)
        before.update_parameters(model)
        after.update_parameters(resumed.compact.model)
        assert same_as_left(before.module, after.module) < 1e-6 and int(after.n_averaged) == int(before.n_averaged) == 4


class Factored(Optimizer):
    """State of one number a row, as memory-saving optimizers keep it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p]["rows"] = torch.zeros(p.shape[0] + 1)


class Unusual(Factored):
    """Of an unknown kind, but its state has the shape of the parameter."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p].update({"trace": p.detach().clone(), "step": 3, "scale": torch.ones(1), "none": None})


def test_state_that_cannot_be_sliced_is_refused() -> None:
    model = residual().train()
    optimizer = Factored(model.parameters())
    optimizer.step()
    with pytest.raises(UserError) as caught:
        shrink_training(model, (batches(1)[0][0],), optimizer, verify=False)
    assert caught.value.found == "Factored keeps `rows` [13] for stem.weight [12, 3, 3, 3]"
    assert "SGD, Adam or AdamW" in caught.value.remedy
    adafactor = torch.optim.Adafactor(model.parameters())
    step(model, adafactor, batches(1)[0])
    with pytest.raises(UserError, match="Adafactor keeps `row_var`"):
        shrink_training(model, (batches(1)[0][0],), adafactor, verify=False)


def test_state_of_an_unknown_optimizer_is_sliced_by_its_shape() -> None:
    model = residual().train()
    optimizer = Unusual(model.parameters())
    optimizer.step()
    resumed = shrink_training(model, (batches(1)[0][0],), optimizer)
    now = dict(resumed.compact.model.named_parameters())
    kept = resumed.optimizer.state[now["one.conv2.weight"]]
    assert torch.equal(kept["trace"], now["one.conv2.weight"]) and kept["trace"].shape == (14, 7, 3, 3)
    assert kept["step"] == 3 and kept["none"] is None and kept["scale"].shape == (1,)


def test_an_average_of_another_network_is_refused() -> None:
    model = residual().train()
    optimizer = momentum(model.parameters())
    other = residual()
    other.fc = nn.Linear(20, 4)
    with pytest.raises(UserError, match=re.escape("fc.weight is [5, 20] in the network and [4, 20]")):
        shrink_training(model, (batches(1)[0][0],), optimizer, averages=[other], verify=False)
    del other.fc
    with pytest.raises(UserError, match="no such tensor in the averaged copy"):
        shrink_training(model, (batches(1)[0][0],), optimizer, averages=[other], verify=False)


def test_a_schedule_that_cannot_be_copied_is_refused() -> None:
    model = residual().train()
    optimizer = momentum(model.parameters())
    schedule = lr_scheduler.StepLR(optimizer, 2)
    schedule.held = (i for i in range(3))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="StepLR cannot be copied"):
        shrink_training(model, (batches(1)[0][0],), optimizer, scheduler=schedule, verify=False)
    del schedule.held  # type: ignore[attr-defined]
    resumed = shrink_training(model, (batches(1)[0][0],), optimizer, scheduler=schedule, verify=False)
    assert isinstance(resumed, Resumed) and resumed.scheduler is not None


def test_cutting_twice_goes_on() -> None:
    """More channels die later; momentum, plan and network compose."""
    model = residual().train()
    optimizer = momentum(model.parameters())
    data = batches(4)
    step(model, optimizer, data[0])
    first = shrink_training(model, (data[1][0],), optimizer)
    step(model, optimizer, data[1])
    step(first.compact.model, first.optimizer, data[1])
    kill(model, {"two.bn1": [1]})
    kill(first.compact.model, {"two.bn1": [0]})  # of 1, 2, 3, 4, 7 ... the first
    second = shrink_training(first.compact.model, (data[2][0],), first.optimizer)
    assert second.compact.plan.layers["two.conv1.weight"] == (2, 3, 4, 7, 8, 9, 10, 11, 12)
    assert second.compact.plan.layers["stem.weight"] == (1, 2, 5, 6, 7, 8, 9, 10, 11)
    assert second.compact.plan.network.endswith("nets.Residual")
    assert step(second.compact.model, second.optimizer, data[2]) == pytest.approx(step(model, optimizer, data[2]))
    got, want = second.compact.model.get_parameter("two.bn1.weight"), model.get_parameter("two.bn1.weight")
    assert torch.allclose(got, want[[2, 3, 4, 7, 8, 9, 10, 11, 12]], rtol=1e-6, atol=1e-7)
