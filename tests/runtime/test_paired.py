"""Against published figures, SciPy, and a likelihood maximised by brute force."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import optimize, stats

from runtime.paired import PairedAccuracy, mcnemar_exact, non_inferior, paired_accuracy, tango_interval


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (1, 7), (7, 1), (5, 5), (25, 40), (400, 470)])
def test_mcnemar_is_the_binomial_test_of_scipy(b: int, c: int) -> None:
    wanted = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(wanted, rel=1e-9)
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
    wanted = 1.959964**2 / (397 + 1.959964**2)
    assert high == pytest.approx(wanted, rel=1e-5)
    assert low == pytest.approx(-wanted, rel=1e-5)


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
    told = PairedAccuracy(100, 1, 1, 0.0, ci95, 1.0)
    assert non_inferior(told, 1.0) == decision
    assert non_inferior(told, 100.0) == "yes"
