"""Methods that put a gate on each channel, and i-SpaSP: their numbers by hand, by autograd and by numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.sparse import function_of
from pipeline.surgery.watch import anatomy
from pipeline.training.compute.distributed import ALONE
from pipeline.training.methods.channels.ispasp import chosen, inside_blocks
from pipeline.training.methods.gated.crop import Pruner
from pipeline.training.methods.gated.gates import Gates
from pipeline.training.methods.gated.targeted_dropout import TargetedDropout
from pipeline.training.methods.gated.variational import CLOSED, Variational
from pipeline.training.steering.channels import channels_of
from pipeline.training.steering.prunable import Rows
from runtime.errors import UserError
from tests.pipeline.training.methods.channels.begun import begun, by_layer, channels, filled, small, training_over
from tests.pipeline.training.small import state


def classes_of(network: nn.Module, layer: str) -> list[int]:
    of = channels(network)
    return next([int(c) for c in part.classes] for part in of.makers if part.name == f"{layer}.weight")


def test_a_gate_lies_behind_the_norm_and_is_gone_when_detached() -> None:
    network = small().eval()
    gates, x = Gates(channels(network), network), torch.rand(3, 1, 8, 8)
    place, before = classes_of(network, "conv1")[2], network(x)
    gates.judged[place] = 0.0
    with gates.attached():
        gated = network(x)
    network_without = small().eval()
    filled(network_without.bn1.weight, [1, 1, 0, 1])
    assert torch.allclose(gated, network_without(x), atol=1e-6)
    assert not torch.allclose(gated, before)
    assert torch.equal(network(x), before)


def pruner(score: str) -> tuple[Pruner, Tensor, Tensor]:
    network = small()
    with torch.no_grad():
        for bias in (network.bn1.bias, network.bn2.bias):
            bias.add_(0.1)
    x, y = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 0, 1, 1, 0])
    section, training = training_over(network, method=score, target={"channels": 0.5, "floor": 0.0})
    training = dataclasses.replace(
        training,
        labelled=lambda step, batches, size: iter([((x[:3],), y[:3]), ((x[3:],), y[3:])]),
        loss=torch.nn.functional.cross_entropy,
    )
    made = Pruner(score, section, training)
    made.cutting.state = state(network)
    return made, x, y


def test_snap_is_what_the_scale_and_the_shift_of_a_channel_would_change() -> None:
    made, x, y = pruner("snap")
    network = made.cutting.state.network
    scores, of = made.scores(0), made.cutting.channels
    assert network.training
    network.eval()
    assert isinstance(network.bn1, nn.BatchNorm2d)
    assert isinstance(network.bn2, nn.BatchNorm2d)
    loss = sum(torch.nn.functional.cross_entropy(network(x[a : a + 3]), y[a : a + 3]) for a in (0, 3))
    assert isinstance(loss, Tensor)
    for name, norm in (("conv1", network.bn1), ("conv2", network.bn2)):
        of_scale, of_shift = torch.autograd.grad(loss, [norm.weight, norm.bias], retain_graph=True)
        expected = (norm.weight * of_scale + norm.bias * of_shift).abs()
        assert by_layer(scores, of, name) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)


def test_crop_is_the_hessian_in_the_gates_times_the_gradient() -> None:
    made, x, y = pruner("crop")
    scores, of, network = made.scores(0), made.cutting.channels, made.cutting.state.network.double().eval()

    def loss(values: Tensor) -> Tensor:
        gates = Gates(of, network)
        gates.judged = values
        with gates.attached():
            parts = [torch.nn.functional.cross_entropy(network(x[a : a + 3].double()), y[a : a + 3]) for a in (0, 3)]
        return parts[0] + parts[1]

    ones = torch.ones(of.costs.count, dtype=torch.float64)
    hessian = torch.func.jacrev(torch.func.grad(loss))(ones)
    gradient = torch.func.grad(loss)(ones)
    assert np.allclose(scores, (hessian @ gradient).detach().abs().numpy(), rtol=1e-3, atol=1e-6)
    assert scores[classes_of(small(), "conv1")].any()


def test_labels_are_asked_for_before_any_work() -> None:
    section, training = training_over(small(), method="earlycrop")
    with pytest.raises(UserError, match="earlycrop needs labels to score channels, and a loop of one's own gives it"):
        function_of("earlycrop")(section, dataclasses.replace(training, labelled=None))
    section, training = training_over(small(), method="variational", amp="fp16")
    with pytest.raises(UserError, match="variational with amp: fp16"):
        function_of("variational")(section, training)


def test_earlycrop_waits_until_the_weights_have_settled() -> None:
    network, hooks, _ = begun("earlycrop", 40, target={"channels": 0.5, "floor": 0.0}, score_batches=1)
    assert [step for step in range(41) if hooks.due(step)] == [19], "an epoch of 40 steps: at reached_at"
    assert hooks.dead(19) is not None
    assert not hooks.due(19)
    gone = int((network.bn1.weight == 0).sum()) + int((network.bn2.weight == 0).sum())
    assert gone in (3, 4)
    assert hooks.state()[1]["pruned"]


def test_theta_follows_the_gradient_of_its_gate_its_weights_and_its_cost() -> None:
    section, training = training_over(small(), method="variational", cost=0.2, pace=12.0, theta=0.5, decay=0.1)
    method, (network, _, state) = Variational(section, training), begun("random", 20)
    filled(network.conv1.weight, [1, 2, 0, 0])
    method.begin(state)
    gates, eta = method._draws.gates, 12.0 / 12
    assert gates is not None
    assert {round(gate, 9) for gate in gates.trained.tolist()} <= {CLOSED, 1.0}
    gates.trained.grad = torch.full_like(gates.trained, -0.1)
    network.conv1.weight.grad = torch.zeros_like(network.conv1.weight)
    place = classes_of(network, "conv1")
    method.after_backward(0)
    expected = [0.5 - eta * (-0.1 + 0.05 * 9 * w * w + 0.2) for w in (1, 2, 0, 0)]
    assert method.theta[place].tolist() == pytest.approx([max(0.0, e) for e in expected], rel=1e-5)
    assert network.conv1.weight.grad[0, 0, 0, 0].item() == pytest.approx(0.1 * max(0.0, expected[0]), abs=1e-6)
    method.theta[place] = [0.01, 0.9, 0.6, 0.4]
    method._draws.step = 12
    assert method.dead(11) is not None
    assert (network.bn1.weight == 0).tolist() == [True, False, False, True]
    assert method._draws.gates is None


def test_the_gradient_of_a_closed_gate_is_what_the_channel_would_bring() -> None:
    """In front of a ReLU: d/dxi of relu(xi z) is relu(z), which a gate of exactly 0 would lose."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.rand(5, 3)
    of = channels_of(anatomy(network, (torch.zeros(2, 3),)).traced, network, list(network.parameters()))
    gates = Gates(of, network)
    place = next([int(c) for c in part.classes] for part in of.makers if part.name == "0.weight")
    with torch.no_grad():
        gates.trained[place] = torch.tensor([CLOSED, 1.0, CLOSED, 1.0])
    gates.trained.requires_grad_(True)
    with gates.attached():
        network.train()(x).sum().backward()
    assert gates.trained.grad is not None
    expected = torch.relu(network[0](x)).sum(0) * network.get_parameter("2.weight")[0]
    assert expected[[0, 2]].abs().max() > 1e-2
    assert torch.allclose(gates.trained.grad[place], expected, atol=1e-5)


def test_targeted_dropout_drops_the_weak_at_random_and_in_eval_mode_always() -> None:
    section, training = training_over(small(), method="targeted_dropout", target={"channels": 0.6, "floor": 0.0})
    method, (network, _, state) = TargetedDropout(section, training), begun("random", 20)
    filled(network.conv1.weight, [1, 4, 3, 2])
    filled(network.conv2.weight, [3, 1, 2])
    method.begin(state)
    assert not method.targeted.any()
    for step in range(8):
        method.after_step(step, True)
    weak = {classes_of(network, "conv1")[0], classes_of(network, "conv2")[1]}
    assert weak <= set(np.flatnonzero(method.targeted).tolist())
    gates = method._draws.gates
    assert gates is not None
    assert np.flatnonzero(gates.judged.numpy() == 0).tolist() == np.flatnonzero(method.targeted).tolist()
    assert set(np.flatnonzero(gates.trained.numpy() == 0).tolist()) <= set(np.flatnonzero(method.targeted))
    method.dead(9)
    assert not network.bn1._forward_hooks
    assert method.cutting.figures(9)["reached"]["channels"] == pytest.approx(4 / 7)


def test_ispasp_is_the_greedy_of_the_paper() -> None:
    torch.manual_seed(0)
    layer, h = nn.Linear(6, 4), torch.rand(20, 6)
    classes = np.arange(6)
    rows = Rows("layer.weight", nn.Parameter(layer.weight), 1, classes)
    stays, sums = chosen([(layer, rows, h[:12]), (layer, rows, h[12:])], classes, 2, ALONE)
    w, hidden = layer.weight.detach().numpy(), h.numpy().T
    chosen_by_hand: set[int] = set()
    for _ in range(20):
        rest = [j for j in range(6) if j not in chosen_by_hand]
        y = (w.T @ (w[:, rest] @ hidden[rest])).sum(1)
        omega = chosen_by_hand | set(np.argsort(-y)[:4].tolist())
        chosen_by_hand = set(sorted(omega, key=lambda j: -hidden[j].sum())[:2])
    assert set(np.flatnonzero(stays).tolist()) == chosen_by_hand
    assert sums == pytest.approx(hidden.sum(1), rel=1e-5)
    assert inside_blocks(channels(small())).sum() == 7
