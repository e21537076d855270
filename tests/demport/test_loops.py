"""What stands in training loops of others: scalers, averages, schedulers, compilation, frozen parts, teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import demport
from pipeline.training.followers import unscale

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4
STEPS = 40


class Backbone(nn.Sequential):
    """Keeps the batch norms of `frozen` layers in eval mode, as detectors do."""

    frozen: tuple[int, ...] = ()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for i in self.frozen:
            self[i].eval()
        return self


def averaged(net: nn.Module) -> AveragedModel:
    average = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    return AveragedModel(net, multi_avg_fn=average, use_buffers=True)


def network(frozen: tuple[int, ...] = ()) -> Backbone:
    torch.manual_seed(0)
    built = Backbone(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    built.frozen = frozen
    return built


def started(
    net: nn.Module, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], **keys: Any
) -> demport.Sparsifier:
    return demport.sparsify(net, optimizer, (X[:2],), steps=STEPS, target={"macs": 0.4}, **keys)


def loss_of(sparse: demport.Sparsifier, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    outputs = (forward or sparse.network)(X)
    return nn.functional.cross_entropy(outputs.float(), Y) + sparse.penalty()


def width(sparse: demport.Sparsifier) -> int:
    return len(sparse.network.get_parameter("0.weight")) + len(sparse.network.get_parameter("3.weight"))


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_overflows_teaches_nothing_and_the_training_lands(fused: bool) -> None:
    """The first two gradients are infinite; a plain optimizer's step is not even called then."""
    net = network()
    sparse = started(net, torch.optim.AdamW(net.parameters(), lr=0.02, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    removed = []
    for step in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(sparse) * (float("inf") if step < 2 else 1.0)
            sparse.optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(loss))
            scaler.step(sparse.optimizer)
            scaler.update()
            removed.append(sparse.step(X))
    assert scaler.get_scale() == 256.0 and any(removed)
    assert all(bool(torch.isfinite(p).all()) for p in sparse.network.parameters())
    compact = sparse.finish()
    assert compact.certificate["law"]["max_rel_diff"] <= 1e-9 and width(sparse) < 14


def test_a_fused_optimizer_shows_unscaled_gradients_and_divides_them_once() -> None:
    (p,) = nn.Linear(1, 1, bias=False).parameters()
    optimizer: Any = torch.optim.SGD([p], lr=1.0, fused=True)
    p.grad, optimizer.grad_scale = torch.full_like(p, 8.0), torch.tensor(4.0)
    unscale(optimizer)
    assert p.grad.item() == 2.0 and optimizer.grad_scale is None
    unscale(optimizer)
    assert p.grad.item() == 2.0


def test_an_average_is_cut_along_and_comes_back_from_a_checkpoint() -> None:
    net = network()
    average = averaged(net)
    sparse = started(net, torch.optim.AdamW(net.parameters(), lr=0.02), averages=[average])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sparse.optimizer, STEPS)
    for step in range(STEPS):
        sparse.optimizer.zero_grad()
        torch.autograd.backward(loss_of(sparse))
        sparse.optimizer.step()
        if sparse.step(X):
            scheduler.optimizer = sparse.optimizer
        (average,) = sparse.averages  # type: ignore[assignment]
        average.update_parameters(sparse.network)
        scheduler.step()
        if step == 24:
            state = copy.deepcopy(sparse.state_dict())
            held = [p.clone() for p in average.parameters()]
    assert sparse.optimizer.param_groups[0]["lr"] < 1e-4, "the schedule reached the optimizer of the smaller network"
    shapes = [p.shape for p in sparse.network.parameters()]
    assert [p.shape for p in average.module.parameters()] == shapes and width(sparse) < 14
    assert int(average.n_averaged) == STEPS
    kept = average.module.get_parameter("3.weight")
    assert 0 < float((kept - sparse.network.get_parameter("3.weight")).detach().abs().max()) < 0.1
    other = network()
    first = averaged(other)
    again = started(other, torch.optim.AdamW(other.parameters(), lr=0.02), averages=[first])
    again.load_state_dict(state)
    assert all(torch.equal(p, q) for p, q in zip(again.averages[0].parameters(), held, strict=True))


def test_accumulation_and_a_compiled_network_that_is_compiled_again() -> None:
    net = network()
    sparse = started(net, torch.optim.AdamW(net.parameters(), lr=0.02))
    forward: Any = torch.compile(sparse.network, backend="eager")
    compilations = 1
    for _ in range(STEPS):
        sparse.optimizer.zero_grad()
        for half in (slice(0, 32), slice(32, 64)):
            torch.autograd.backward(nn.functional.cross_entropy(forward(X[half]), Y[half]) / 2)
        torch.autograd.backward(sparse.penalty().requires_grad_())
        sparse.optimizer.step()
        if sparse.step(X):
            forward, compilations = torch.compile(sparse.network, backend="eager"), compilations + 1
    assert compilations > 3 and width(sparse) < 14
    assert torch.allclose(sparse.finish().model.eval()(X), sparse.network.eval()(X), atol=1e-5)


def test_what_is_frozen_stays_as_it_is_and_norms_in_eval_mode_stay_there() -> None:
    """The first convolution and norm are frozen, by the network's own `train`; the second norm by the user's hand."""
    net = network(frozen=(1,))
    for p in [*net[0].parameters(), *net[1].parameters()]:
        p.requires_grad_(False)
    before = net[0].get_parameter("weight").clone()
    net.train()
    sparse = demport.sparsify(
        net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02), (X[:2],),
        steps=STEPS, target={"macs": 0.6},
    )  # fmt: skip
    for step in range(STEPS):
        if step % 10 == 0:
            sparse.network.train()
            sparse.network.get_submodule("4").eval()
        sparse.optimizer.zero_grad()
        torch.autograd.backward(loss_of(sparse))
        sparse.optimizer.step()
        sparse.step(X)
        modes = [sparse.network.get_submodule(name).training for name in "0134"]
        assert modes == [True, False, True, False], step
    assert torch.equal(sparse.network.get_parameter("0.weight"), before)
    assert torch.equal(sparse.network.get_buffer("1.running_mean"), torch.zeros(8))
    assert len(sparse.network.get_parameter("3.weight")) < 8
    assert type(sparse.network) is not Backbone and not sparse.network.train().get_submodule("1").training


def test_a_teacher_is_mixed_into_any_loss_and_is_never_trained() -> None:
    net = network()
    sparse = started(net, torch.optim.AdamW(net.parameters(), lr=0.02), teacher=net, distill={"temperature": 2.0})
    outputs, loss = torch.zeros(64, 4), torch.tensor(3.0)
    aims = copy.deepcopy(net).eval()(X).detach() / 2
    divergence = (aims.softmax(1) * (aims.log_softmax(1) - torch.full((4,), 0.25).log())).sum(1).mean()
    assert float(sparse.distilled(loss, outputs, X)) == pytest.approx(0.5 * 3 + 0.5 * 4 * float(divergence), rel=1e-4)
    far = sparse.distilled(loss, outputs, X, distance=lambda own, other, temperature: (own - other).abs().max())
    assert float(far.detach()) == pytest.approx(1.5 + 0.5 * float(2 * aims.abs().max()), rel=1e-4)
    with pytest.raises(demport.UserError, match="distill: `weight` is 2"):
        started(net, torch.optim.SGD(net.parameters(), 0.1), teacher=net, distill={"weight": 2})
    plain = started(net, torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(demport.UserError, match="no teacher"):
        plain.distilled(loss, outputs, X)


def test_wrong_networks_and_optimizers_are_one_line() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    wrapped: Any = torch.compile(net, backend="eager")
    with pytest.raises(demport.UserError, match=r"wrapped .*give model\._orig_mod"):
        started(wrapped, optimizer)
    with pytest.raises(demport.UserError, match="optimizer is str; an optimizer of torch"):
        started(net, ["sgd"])  # type: ignore[list-item]
    with pytest.raises(demport.UserError, match="holds no parameter of the network"):
        started(network(), optimizer)


def test_who_goes_on_stepping_the_old_optimizer_is_told() -> None:
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    sparse = started(net, optimizer)
    with pytest.raises(demport.UserError, match="no step of `optimizer` in 20 calls"):
        for _ in range(STEPS):
            sparse.optimizer.zero_grad()
            torch.autograd.backward(loss_of(sparse))
            optimizer.step()
            sparse.step(X)
    assert sparse.optimizer is not optimizer
