"""Intervals on samples whose distribution is known, against published figures, SciPy, and a likelihood maximised by
brute force."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from runtime.measure import statistics
from runtime.measure.statistics import (
    PairedAccuracy,
    images_needed,
    mcnemar_exact,
    non_inferior,
    paired_accuracy,
    ratio_interval,
    run_length,
    tango_interval,
    widening,
)


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
def test_thewidening_is_students(runs: int) -> None:
    expected = stats.t.ppf(0.975, runs - 1) / stats.norm.ppf(0.975) * (runs / (runs - 1)) ** 0.5
    assert widening(runs) == pytest.approx(expected, rel=1e-12)
    assert widening(runs) > 1


def test_both_ends_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    first, other = noise(generator, 36, 0.0), noise(generator, 36, 0.0)
    ratio, low, high = ratio_interval(first, other)
    monkeypatch.setattr(statistics, "widening", lambda runs: 1.0)
    _, plain_low, plain_high = ratio_interval(first, other)
    assert np.log(low / ratio) == pytest.approx(widening(6) * np.log(plain_low / ratio))
    assert np.log(high / ratio) == pytest.approx(widening(6) * np.log(plain_high / ratio))


def test_runs_grow_with_the_experiment() -> None:
    assert [run_length(blocks) for blocks in (1, 5, 10, 30, 100, 3000)] == [1, 1, 2, 6, 10, 55]
    assert all(blocks // run_length(blocks) >= 5 for blocks in range(5, 4000))


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (1, 7), (7, 1), (5, 5), (25, 40), (400, 470)])
def test_mcnemar_is_the_binomial_test_of_scipy(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


def test_mcnemar_holds_where_floats_overflow() -> None:
    assert mcnemar_exact(5000, 5000) == 1.0
    assert mcnemar_exact(4800, 5200) == pytest.approx(float(stats.binomtest(4800, 10000).pvalue), rel=1e-6)


def test_the_worked_example_of_the_literature() -> None:
    """Airway reactivity before and after transplantation, 21 children (1, 1, 7, 12): Fagerland, Lydersen and Laake
    (2014) give -0.517 to -0.026 for Tango's interval and 0.070 for the exact McNemar test."""
    low, high = tango_interval(1, 7, 21)
    assert round(low, 3) == -0.517
    assert round(high, 3) == -0.026
    assert round(mcnemar_exact(1, 7), 3) == 0.070


def brute_score(b: int, c: int, n: int, difference: float) -> float:
    """The score statistic with p21 found by maximising the likelihood numerically, not by the closed form."""

    def loss(p21: float) -> float:
        cells = ((b, p21 + difference), (c, p21), (n - b - c, 1 - 2 * p21 - difference))
        return -sum(count * float(np.log(p)) for count, p in cells if count)

    low, high = max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
    p21 = float(optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
    return float((b - c - n * difference) / sqrt(n * (2 * p21 + difference * (1 - difference))))


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 21), (12, 3, 397), (40, 55, 1000), (3, 3, 50)])
def test_both_ends_are_where_the_score_test_starts_to_reject(b: int, c: int, n: int) -> None:
    low, high = tango_interval(b, c, n)
    assert brute_score(b, c, n, low) == pytest.approx(1.959964, abs=1e-3)
    assert brute_score(b, c, n, high) == pytest.approx(-1.959964, abs=1e-3)
    assert low < (b - c) / n < high


def test_no_discordant_pair_still_has_a_width() -> None:
    """With b = c = 0 the test solves to difference = z^2 / (n + z^2)."""
    low, high = tango_interval(0, 0, 397)
    expected = 1.959964**2 / (397 + 1.959964**2)
    assert high == pytest.approx(expected, rel=1e-5)
    assert low == pytest.approx(-expected, rel=1e-5)


@pytest.mark.parametrize(("b", "c", "n"), [(10, 0, 10), (0, 10, 10), (1, 0, 1), (9, 1, 10)])
def test_extremes_stay_within_one(b: int, c: int, n: int) -> None:
    low, high = tango_interval(b, c, n)
    mirrored = tango_interval(c, b, n)
    assert -1.0 <= low < high <= 1.0
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_ninety_five_percent_cover_the_truth() -> None:
    generator = np.random.default_rng(1)
    p12, p21, n, runs = 0.03, 0.02, 397, 2000
    counts = generator.multinomial(n, [p12, p21, 1 - p12 - p21], size=runs)
    intervals = {(b, c): tango_interval(int(b), int(c), n) for b, c in {(int(b), int(c)) for b, c, _ in counts}}
    covered = np.mean([intervals[int(b), int(c)][0] <= 0.01 <= intervals[int(b), int(c)][1] for b, c, _ in counts])
    assert 0.935 <= covered <= 0.97
    widths = [high - low for low, high in intervals.values()]
    assert 0.02 < np.mean(widths) < 0.06


def test_counts_and_percentage_points() -> None:
    first = np.array([1, 1, 1, 1, 0, 0, 0, 1], dtype=bool)
    second = np.array([1, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
    result = paired_accuracy(first, second)
    assert (result.n, result.only_first, result.only_second) == (8, 3, 1)
    assert result.difference_pp == -25.0
    low, high = tango_interval(1, 3, 8)
    assert result.ci95_pp == (100 * low, 100 * high)
    assert result.p_value == mcnemar_exact(3, 1)


@pytest.mark.parametrize(
    ("ci95", "decision"), [((-0.9, 2.0), "yes"), ((-1.0, 2.0), "yes"), ((-1.1, 2.0), "undecided"), ((-3.0, -1.1), "no")]
)
def test_non_inferiority_by_the_interval(ci95: tuple[float, float], decision: str) -> None:
    paired = PairedAccuracy(100, 1, 1, 0.0, ci95, 1.0)
    assert non_inferior(paired, 1.0) == decision
    assert non_inferior(paired, 100.0) == "yes"


def test_how_many_images_would_be_enough() -> None:
    """Without a discordant pair the interval ends at z^2 / (n + z^2): below 0.5 points from 765 images on."""
    same = paired_accuracy(np.ones(100, bool), np.ones(100, bool))
    assert images_needed(same, 0.5) == 765 and non_inferior(same, 0.5) == "undecided"
    right, worse = np.ones(400, bool), np.arange(400) >= 4
    lost = paired_accuracy(right, worse)  # one point
    assert images_needed(lost, 1.0) is None and images_needed(lost, 0.5) is None
    count = images_needed(lost, 2.0)
    assert count is not None and count > 400
    low, _ = tango_interval(0, count / 100, count)
    assert 100 * low == pytest.approx(-2.0, abs=0.01)
    assert images_needed(lost, 50.0) == 400
