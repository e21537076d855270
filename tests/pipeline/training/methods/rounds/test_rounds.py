"""Rounds, worked out by hand: where they begin, what a pruning leaves, what a network goes back to, and the rates."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.training.hooks import Hooks
from pipeline.training.masks import Masks, in_scope
from pipeline.training.methods.rounds.bimp import bimp
from pipeline.training.methods.rounds.han import Han, han
from pipeline.training.methods.rounds.imp import imp
from pipeline.training.methods.rounds.lottery_ticket import LotteryTicket, lottery_ticket
from pipeline.training.methods.rounds.rounds import Rounds, keep_largest_of_all
from pipeline.training.methods.rounds.schedules import adaptive, retraining_rate
from pipeline.training.train import Setting, train_sparse
from runtime.errors import UserError
from tests.pipeline.training.small import SmallNet, joining_test_split, state

SIZE = 9 * 4 + 9 * 12 + 6  # weights of a SmallNet


def begun(hooks: Hooks, network: nn.Module) -> Any:
    own = state(network)
    assert hooks.masks is not None
    hooks.masks.bind(own)
    hooks.begin(own)
    return own


def test_rounds_begin_where_the_one_before_ends_and_one_without_steps_is_passed() -> None:
    rounds = Rounds([4, 0, 2, 3])
    assert rounds.steps == 9
    assert [rounds.at(step) for step in (0, 3, 4, 5, 6, 8)] == [(0, 0), (0, 3), (2, 0), (2, 1), (3, 0), (3, 2)]
    assert [list(rounds.beginning(step)) for step in (2, 3, 4, 5, 8)] == [[], [1, 2], [], [3], []]


def test_one_threshold_over_all_layers_leaves_each_a_weight() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    masks = Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in in_scope(network).items()})
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(torch.tensor([[9.0, -8.0, 7.0], [6.0, 5.0, -4.0]]))
        network.get_parameter("1.weight").copy_(torch.tensor([[0.1, -0.3], [0.2, 0.0]]))
    masks.bind(state(network))
    keep_largest_of_all(masks, 4)
    assert network.get_parameter("0.weight").tolist() == [[9.0, -8.0, 7.0], [0.0, 0.0, 0.0]]
    assert masks.values["1.weight"].tolist() == [[False, True], [False, False]]


def test_a_lottery_ticket_goes_back_to_step_k_with_its_survivors_and_without_momentum() -> None:
    section = config.sparse_of(method="lottery_ticket", rounds=2, prune=0.5, rewind=0.25, epochs=4)
    training = joining_test_split(section, 2)
    method, network = LotteryTicket(section, training), training.network
    own = begun(Hooks(begin=method.begin, masks=method.masks), network)
    assert method.rounds.lengths == (8, 6, 6)
    assert [method.position(step) for step in (0, 7, 8, 13, 14, 19)] == [0, 7, 2, 7, 2, 7]
    weights = in_scope(network)
    with torch.no_grad():
        for number, weight in enumerate(weights.values()):
            weight.fill_(number + 1.0)
    method.after_step(1, True)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    own.optimizer.step(0.1)
    with torch.no_grad():
        weights["conv2.weight"].copy_(torch.arange(108.0).view(3, 4, 3, 3) + 1)
        weights["conv1.weight"].fill_(0.5)
    method.between(7)
    assert method.masks.living == SIZE - math.ceil(SIZE / 2)
    assert method.masks.values["conv1.weight"].sum() == 1
    expected = method.masks.values["conv2.weight"] * 2.0
    assert torch.equal(weights["conv2.weight"], expected)
    assert not own.optimizer.inner.state
    assert not bool(method.masks.values["conv2.weight"].flatten()[:30].any())


@pytest.mark.parametrize("control", ["reinit", "shuffle"])
def test_the_controls_change_the_last_round_alone(control: str) -> None:
    section = config.sparse_of(method="lottery_ticket", rounds=2, prune=0.2, control=control, epochs=2)
    training = joining_test_split(section, 2)
    method, network = LotteryTicket(section, training), training.network
    begun(Hooks(begin=method.begin, masks=method.masks), network)
    weight = in_scope(network)["conv2.weight"]
    first = weight.detach().clone()
    method.between(3)
    assert torch.equal(weight, first * method.masks.values["conv2.weight"])
    with torch.no_grad():
        before = method.masks.values["conv2.weight"].clone()
        weight.copy_(before * 1e9)
    method.between(7)
    after = method.masks.values["conv2.weight"]
    assert after.sum() == before.sum()
    assert torch.equal(after, before) == (control == "reinit")
    assert torch.equal(weight, first * after) == (control == "shuffle")
    assert set(weight[after].tolist()) <= set(first.flatten().tolist())


def test_layers_pruned_on_their_own_spare_the_last() -> None:
    section = config.sparse_of(method="lottery_ticket", rounds=1, prune=0.5, layerwise=True, epochs=2)
    training = joining_test_split(section, 2)
    method = LotteryTicket(section, training)
    begun(Hooks(begin=method.begin, masks=method.masks), training.network)
    method.between(3)
    living = {name: int(mask.sum()) for name, mask in method.masks.values.items()}
    assert living == {"conv1.weight": 18, "conv2.weight": 54, "linear.weight": 4}
    assert method.masks.density == pytest.approx(76 / SIZE)


def test_han_prunes_below_the_spread_of_each_layer_and_weakens_dropout() -> None:
    section = config.sparse_of(method="han", rounds=2, retrain_epochs=3, quality=1.0, layers={"3": 0.0}, epochs=2)
    training = joining_test_split(section, 2)
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Dropout(0.4), nn.Linear(4, 2), nn.Linear(2, 4))
    method = Han(section, dataclasses.replace(training, first=lambda: network))
    begun(Hooks(begin=method.begin, masks=method.masks), network)
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(
            torch.tensor([[1.0, -1.0], [3.0, -3.0], [1.0, -1.0], [3.0, -3.0]])
        )  # spread sqrt(5)
    method.between(3)
    assert network.get_parameter("0.weight").tolist() == [[0.0, 0.0], [3.0, -3.0], [0.0, 0.0], [3.0, -3.0]]
    assert bool(method.masks.values["3.weight"].all())
    assert method.rounds.lengths == (4, 6, 6)
    peak = max(training.rate(step) for step in range(4))
    assert method.rate(3) is None
    assert method.rate(4) == pytest.approx(0.1 * peak)
    dropout = network[2]
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == pytest.approx(0.4)
    method.masks.values["3.weight"].view(-1)[:6] = False
    method.load({}, {"round": 1})
    assert dropout.p == pytest.approx(0.4 * math.sqrt(2 / 8))


def test_han_apart_prunes_and_trains_convolutions_and_linear_layers_in_turn() -> None:
    section = config.sparse_of(method="han", rounds=2, retrain_epochs=1, phases="apart", epochs=2)
    training = joining_test_split(section, 2)
    network = training.network
    hooks = han(section, training)
    assert hooks.masks is not None and hooks.steps == 4 + 2 * 2 * 2
    own = begun(hooks, network)
    densities, changed = [], []
    for step in range(hooks.steps):
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        for p in network.parameters():
            p.grad = torch.full_like(p, 1e-3)
        hooks.after_backward(step)
        own.optimizer.step(0.1)
        hooks.after_step(step, True)
        hooks.between(step)
        masks = hooks.masks.values
        densities.append((float(masks["conv2.weight"].float().mean()), float(masks["linear.weight"].float().mean())))
        changed.append({name for name, p in network.named_parameters() if not torch.equal(p, before[name])})
    conv = [conv for conv, _ in densities]
    linear = [linear for _, linear in densities]
    assert conv[2] == linear[2] == 1 and conv[3] < 1 and linear[3] == linear[4] == 1
    assert conv[5] == conv[3] == conv[6] and linear[5] < 1
    assert conv[7] < conv[5] and linear[7] == linear[5]
    names = {name for name, _ in network.named_parameters()}
    assert changed[4] == names - {"linear.weight", "linear.bias"}
    assert changed[6] == {"linear.weight", "linear.bias"}


def test_the_rates_of_a_retraining() -> None:
    rates = [0.1, 0.5, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.02]

    def curve(schedule: Any, length: int = 5, damage: float = 1.0) -> list[float]:
        return [retraining_rate(schedule, place, length, rates, damage) for place in range(length)]

    assert curve("ft") == [0.02] * 5
    assert curve("lrw") == [0.4, 0.2, 0.1, 0.05, 0.02]
    assert curve("slr") == [1.0, 1.0, 0.6, 0.2, 0.05]
    assert curve("llr") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert curve("allr", damage=0.5) == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert curve("clr", length=4)[::2] == pytest.approx([1.0, 0.51])
    rising = curve("llr", length=20)
    assert rising[:4] == pytest.approx([0.0, 0.5, 1.0, 17 / 18])
    assert adaptive(0.3, 0.36, 1, 10) == pytest.approx(0.5)
    assert [adaptive(0.01, 0.36, 2, 10), adaptive(9.0, 0.36, 2, 10)] == [0.2, 1.0]


def test_imp_prunes_in_equal_shares_and_allr_follows_what_the_pruning_changed() -> None:
    section = config.sparse_of(method="imp", rounds=2, density=0.25, retrain_epochs=5, epochs=4)
    training = joining_test_split(section, 2)
    hooks, network = imp(section, training), training.network
    own = begun(hooks, network)
    assert hooks.masks is not None
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        in_scope(network)["conv2.weight"].fill_(1.0)
        in_scope(network)["conv1.weight"].fill_(0.5)
        for weight in in_scope(network).values():
            own.optimizer.inner.state[weight]["momentum_buffer"] = torch.ones_like(weight)
    hooks.between(7)
    assert hooks.masks.living == SIZE // 2  # all of 0 and 0.5, and some of 1, but one of each layer
    assert not own.optimizer.inner.state
    lost = (108 - (75 - 2)) + 35 * 0.25  # squares; conv1 and linear keep one each
    distance = math.sqrt(lost / (108 + 36 * 0.25))
    peak = max(training.rate(step) for step in range(8))
    first = hooks.rate(8)
    assert first == pytest.approx(peak * min(1.0, distance / math.sqrt(0.5)))
    assert hooks.steps == 8 + 4 + 6
    hooks.between(11)
    assert hooks.masks.living == round(SIZE / 4)
    assert hooks.figures(11)["round"] == 1


def test_bimp_takes_the_steps_of_one_training() -> None:
    section = config.sparse_of(method="bimp", rounds=2, density=0.25, dense_share=0.5, epochs=7)
    training = joining_test_split(section, 2)
    hooks = bimp(section, training)
    peak = max(training.rate(step) for step in range(14))
    assert hooks.steps == 14
    assert [hooks.rate(step) for step in (0, 4, 7)] == pytest.approx([peak, peak / 2, peak / 8])


def test_what_leaves_no_room_is_refused() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (lottery_ticket, {"method": "lottery_ticket", "rewind": 1.0}, "the end of the training"),
        (lottery_ticket, {"method": "lottery_ticket", "dense": ("conv1", "conv2", "linear")}, "every layer"),
        (imp, {"method": "imp", "density": 0.01}, "less than one weight"),
        (bimp, {"method": "bimp", "rounds": 5}, "leave no epoch"),
        (han, {"method": "han", "layers": {"head": 1.0}}, "names head"),
    ]
    for method, keys, message in cases:
        section = config.sparse_of(epochs=4, **keys)
        with pytest.raises(UserError, match=message):
            method(section, joining_test_split(section, 2))
    assert isinstance(joining_test_split(config.Training(), 2).network, SmallNet)


@pytest.mark.parametrize(
    ("method", "keys"), [("lottery_ticket", {}), ("nnrelief", {"reset": True, "retrain_epochs": 4})]
)
def test_the_last_row_of_a_round_tells_of_the_network_before_the_next_pruning(
    method: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    data = load(config.Data())
    data = dataclasses.replace(data, train=data.test)
    section = config.sparse_of(method=method, rounds=1, epochs=4, batch_size=16, **keys)
    setting = Setting(config.Model(args={"width": 4}), data, 1, 1, "cpu", tmp_path, Silent())
    rows = [json.loads(line) for line in train_sparse(section, setting).history.read_text().splitlines()]
    assert [row["round"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["density"] == 1 for row in rows] == [True] * 4 + [False] * 4
    assert rows[3]["accuracy"] > 0.6 > rows[4]["accuracy"]  # trained; begun again
