"""The interval on samples whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from runtime import bootstrap
from runtime.bootstrap import _widening, ratio_interval, run_length


def noise(generator: np.random.Generator, blocks: int, together: float) -> NDArray[np.float64]:
    """Log-normal times (blocks, 2) around 1 ms; `together` is the correlation of one block's log with the next
    one's."""
    state, path = 0.0, np.empty(blocks)
    for i, step in enumerate(generator.standard_normal(blocks)):
        state = together * state + (1 - together**2) ** 0.5 * step
        path[i] = state
    return np.exp(0.1 * path[:, None] + 0.05 * generator.standard_normal((blocks, 2)))


def test_the_ratio_is_that_of_the_medians() -> None:
    first = np.array([[1.0, 9.0], [2.0, 4.0], [3.0, 5.0]])
    ratio, low, high = ratio_interval(first, first / 2)
    assert ratio == 2.0
    assert low <= 2.0 <= high
    assert ratio_interval(np.full((10, 2), 3.0), np.full((10, 2), 2.0)) == (1.5, 1.5, 1.5)


def test_the_seed_decides() -> None:
    generator = np.random.default_rng(0)
    first, other = noise(generator, 40, 0.5), noise(generator, 40, 0.5)
    assert ratio_interval(first, other, seed=3) == ratio_interval(first, other, seed=3)
    assert ratio_interval(first, other, seed=3)[1:] != ratio_interval(first, other, seed=4)[1:]


@pytest.mark.parametrize(("blocks", "together"), [(30, 0.0), (30, 0.5), (90, 0.5)])
def test_the_truth_is_covered(blocks: int, together: float) -> None:
    """Nominal 95 %; at least 90 % of 120, also where neighbouring blocks are correlated on each side apart."""
    generator = np.random.default_rng(blocks)
    inside, widths = [], []
    for seed in range(120):
        first, other = noise(generator, blocks, together), noise(generator, blocks, together) / 1.25
        _, low, high = ratio_interval(first, other, seed=seed)
        inside.append(low <= 1.25 <= high)
        widths.append(high - low)
    assert np.mean(inside) >= 0.90
    assert np.mean(widths) < 0.4 * (30 / blocks) ** 0.5


def test_what_slows_both_sides_of_a_block_cancels() -> None:
    generator = np.random.default_rng(5)
    shared = np.exp(generator.standard_normal((100, 1)))  # the machine's speed varies by a factor of e
    first, other = shared * noise(generator, 100, 0.0), shared * noise(generator, 100, 0.0)
    paired = ratio_interval(first, other)
    unpaired = ratio_interval(first, generator.permutation(other))
    assert paired[2] - paired[1] < 0.6 * (unpaired[2] - unpaired[1])
    assert paired[1] < 1 < paired[2]


@pytest.mark.parametrize("runs", [6, 8, 12, 30, 55])
def test_the_widening_is_students(runs: int) -> None:
    wanted = stats.t.ppf(0.975, runs - 1) / stats.norm.ppf(0.975) * (runs / (runs - 1)) ** 0.5
    assert _widening(runs) == pytest.approx(wanted, rel=0.01)
    assert _widening(runs) > 1


def test_both_ends_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    first, other = noise(generator, 36, 0.0), noise(generator, 36, 0.0)
    ratio, low, high = ratio_interval(first, other)
    monkeypatch.setattr(bootstrap, "_widening", lambda runs: 1.0)
    _, plain_low, plain_high = ratio_interval(first, other)
    assert np.log(low / ratio) == pytest.approx(_widening(6) * np.log(plain_low / ratio))
    assert np.log(high / ratio) == pytest.approx(_widening(6) * np.log(plain_high / ratio))


def test_runs_grow_with_the_experiment() -> None:
    assert [run_length(blocks) for blocks in (1, 5, 10, 30, 100, 3000)] == [1, 1, 2, 6, 10, 55]
    assert all(blocks // run_length(blocks) >= 5 for blocks in range(5, 4000))
