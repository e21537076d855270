"""Which weights methods with masks let live: by hand on small layers, and through a whole small training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline import config
from pipeline.training.masks import in_scope
from pipeline.training.methods.weights.rigl import moved, rigl
from pipeline.training.methods.weights.set import nearest_zero, set_
from pipeline.training.methods.weights.srigl import rewired, srigl
from runtime.errors import UserError
from tests.pipeline.training.methods.weights.begun import begun
from tests.pipeline.training.small import SmallNet, joining_test_split

SIZE = 9 * 4 + 9 * 12 + 6  # weights of a SmallNet: 1-4 and 4-3 channels of 3x3, 3-2 linear


def bools(text: str) -> Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in text.split()])


def test_rigl_moves_the_smallest_to_the_largest_gradients_and_a_dropped_weight_may_come_back() -> None:
    lives, size = bools("xx.. xx.."), torch.tensor([[4.0, 1.0, 0, 0], [3.0, 2.0, 0, 0]])
    gain = torch.tensor([[9.0, 0.0, 5.0, 6.0], [9.0, 7.0, 1.0, 0.0]])
    assert torch.equal(moved(lives, size, gain, 0.25), bools("x..x xx..") | bools(".... .x.."))
    assert torch.equal(moved(lives, size, gain, 0.5), bools("x..x xx.."))
    assert torch.equal(moved(lives, size, gain, 0.5, rows=True), bools("x..x xx.."))
    assert torch.equal(moved(lives, size, gain, 0.0), lives)


def test_rigl_keeps_the_count_and_new_weights_begin_at_0() -> None:
    section = config.sparse_of(method="rigl", density=0.3, every=1, epochs=2, batch_size=64)
    training = joining_test_split(section, 10)
    hooks = rigl(section, training)
    assert hooks.masks is not None
    network = training.network
    assert isinstance(network, SmallNet)
    begun(hooks, network)
    living = hooks.masks.living
    assert living == pytest.approx(0.3 * SIZE, abs=2)
    for weight in in_scope(network).values():
        weight.grad = torch.ones_like(weight)
    before = {name: mask.clone() for name, mask in hooks.masks.values.items()}
    hooks.after_step(3, True)
    new = {name: hooks.masks.values[name] & ~was for name, was in before.items()}
    assert hooks.masks.living == living
    assert sum(int(mask.sum()) for mask in new.values()) > 0
    assert all(not in_scope(network)[name][mask].any() for name, mask in new.items())
    still = {name: mask.clone() for name, mask in hooks.masks.values.items()}
    hooks.after_step(4, False)
    hooks.after_step(19, True)
    assert all(torch.equal(mask, hooks.masks.values[name]) for name, mask in still.items())


def test_layers_may_have_densities_of_their_own() -> None:
    own = {"conv2": 0.5, "linear": 1.0}
    section = config.sparse_of(method="rigl", density=0.25, densities=own, distribution="uniform", epochs=2)
    hooks = rigl(section, joining_test_split(section, 10))
    assert hooks.masks is not None
    counts = {name: int(mask.sum()) for name, mask in hooks.masks.values.items()}
    assert counts == {"conv1.weight": 9, "conv2.weight": 54, "linear.weight": 6}
    wrong = config.sparse_of(method="set", densities={"head": 0.5}, epochs=2)
    with pytest.raises(UserError, match=r"sparse\.densities names head; .*conv1, conv2, linear"):
        set_(wrong, joining_test_split(wrong, 10))
    both = config.sparse_of(method="rigl", densities={"conv2": 0.5}, fan_in=2, epochs=2)
    with pytest.raises(UserError, match=r"sparse\.fan_in and sparse\.densities"):
        rigl(both, joining_test_split(both, 10))


def test_rigl_at_kernel_grain_reads_so_many_whole_kernels_in_every_channel() -> None:
    section = config.sparse_of(method="rigl", grain="kernel", fan_in=2, every=1, epochs=2)
    training = joining_test_split(section, 10)
    hooks = rigl(section, training)
    assert hooks.masks is not None
    begun(hooks, training.network)
    for step in (0, 1):
        for weight in in_scope(training.network).values():
            weight.grad = torch.randn_like(weight)
        hooks.after_step(step, True)
        kernels = hooks.masks.values["conv2.weight"].flatten(2)
        assert torch.equal(kernels.any(2), kernels.all(2))
        assert kernels.any(2).sum(1).tolist() == [2, 2, 2]
    assert bool(hooks.masks.values["conv1.weight"].all())  # it has one input channel, fewer than two
    assert hooks.masks.values["linear.weight"].sum(1).tolist() == [2, 2]


def test_set_drops_the_share_nearest_zero_of_each_sign() -> None:
    weight = torch.tensor([[0.1, 0.5, -0.2, -0.9], [0.3, 0.9, -0.1, 0.0]])
    lives = bools("xxxx xxx.")
    assert torch.equal(nearest_zero(weight, lives, 0.5), bools("x... x.x."))
    assert not nearest_zero(weight, lives, 0.2).any()


def test_set_grows_at_random_and_not_where_it_dropped_and_leaves_the_last_layer() -> None:
    section = config.sparse_of(method="set", density=0.3, epochs=3)
    training = joining_test_split(section, 5)
    hooks = set_(section, training)
    assert hooks.masks is not None
    begun(hooks, training.network)
    before = {name: mask.clone() for name, mask in hooks.masks.values.items()}
    dropped = nearest_zero(in_scope(training.network)["conv2.weight"], before["conv2.weight"], 0.3)
    hooks.after_step(3, True)
    assert torch.equal(hooks.masks.values["conv2.weight"], before["conv2.weight"])
    hooks.after_step(4, True)
    after = hooks.masks.values
    assert dropped.any()
    assert not (after["conv2.weight"] & dropped).any()
    assert after["conv2.weight"].sum() == before["conv2.weight"].sum()
    assert torch.equal(after["linear.weight"], before["linear.weight"])


def test_srigl_gives_up_channels_without_salient_weights_and_hands_their_weights_on() -> None:
    weight = torch.tensor([[5.0, 4.0, 0, 0], [3.0, 2.0, 0, 0], [0.1, 0.2, 0, 0]])
    gradient = torch.tensor([[0.0, 0, 9, 0], [0, 0, 0, 8], [0, 0, 0.1, 0.2]])
    mask = bools("xx.. xx.. xx..")
    new = rewired(mask, weight, gradient, count=6, share=1 / 3, salient=0.5)
    assert torch.equal(new, bools("xxx. xx.x ...."))
    kept = rewired(mask, weight, gradient, count=6, share=1 / 3, salient=0.0)
    assert kept.sum(1).tolist() == [2, 2, 2]


def test_srigl_at_kernel_grain_reads_as_many_whole_kernels_in_every_channel() -> None:
    section = config.sparse_of(method="srigl", grain="kernel", density=0.5, drop=0.9, every=1, epochs=2, salient=0.0)
    training = joining_test_split(section, 10)
    hooks = srigl(section, training)
    assert hooks.masks is not None
    begun(hooks, training.network)
    before = {name: mask.clone() for name, mask in hooks.masks.values.items()}
    for step in (0, 1):
        for weight in in_scope(training.network).values():
            weight.grad = torch.randn_like(weight)
        hooks.after_step(step, True)
        kernels = hooks.masks.values["conv2.weight"].flatten(2)
        assert torch.equal(kernels.any(2), kernels.all(2))
        assert len(set(kernels.any(2).sum(1).tolist())) == 1
    assert any(not torch.equal(mask, hooks.masks.values[name]) for name, mask in before.items())


@pytest.mark.parametrize(
    "method", ["rigl", "set", "srigl", "chase", "static_erk", "static_uniform", "kstarts", "kstarts_dissipating"]
)
def test_a_density_of_less_than_a_weight_a_layer_and_layers_that_are_not_there_are_refused(method: str) -> None:
    from pipeline.config.sparse import function_of

    few = config.sparse_of(method=method, density=0.01, epochs=9)
    with pytest.raises(UserError, match="less than one weight"):
        function_of(method)(few, joining_test_split(few, 5))
    named = config.sparse_of(method=method, density=0.5, epochs=9, dense=("head",))
    with pytest.raises(UserError, match=r"names head; .*conv1, conv2, linear"):
        function_of(method)(named, joining_test_split(named, 5))
