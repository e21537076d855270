"""Statistics of two classifiers on the same images: the exact McNemar test and an interval for the difference of
accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from runtime.backend import Array

METHOD = "difference: Tango's asymptotic score interval (1998); p: exact McNemar test, two-sided"
Decision = Literal["yes", "no", "undecided"]
_Z95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class PairedAccuracy:
    """Accuracy of the second classifier less that of the first, on the same n images.

    `only_first` and `only_second` count the images that just one of them gets right. `difference_pp` and its 95 %
    interval `ci95_pp` are in percentage points; `p_value` tests that both are equally often right.
    """

    n: int
    only_first: int
    only_second: int
    difference_pp: float
    ci95_pp: tuple[float, float]
    p_value: float
    method: str = METHOD


def non_inferior(difference: PairedAccuracy, margin_pp: float) -> Decision:
    """Whether the second is worse by no more than the margin: "yes" where the whole interval says so, "no" where the
    whole interval says it is worse, else "undecided"."""
    low, high = difference.ci95_pp
    return "yes" if low >= -margin_pp else "no" if high < -margin_pp else "undecided"


def paired_accuracy(first: Array, second: Array) -> PairedAccuracy:
    """first, second: boolean (N,), whether each image was classified correctly."""
    assert first.shape == second.shape
    assert first.dtype == second.dtype == np.bool_
    n = len(first)
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(second & ~first))
    low, high = tango_interval(only_second, only_first, n)
    return PairedAccuracy(
        n, only_first, only_second, 100 * (only_second - only_first) / n, (100 * low, 100 * high),
        mcnemar_exact(only_first, only_second),
    )  # fmt: skip


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value of b against c discordant pairs: twice the smaller binomial tail at 1/2, at most 1.

    Counted in integers, so exact for any size. McNemar, Psychometrika 12 (1947); exact form: Fagerland, Lydersen and
    Laake, Statistics in Medicine 33 (2014).
    """
    n = b + c
    tail, term = 0, 1
    for k in range(min(b, c) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, tail / int(2 ** (n - 1))) if n else 1.0


def tango_interval(b: int, c: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """Interval of p12 - p21, estimated by (b - c)/n from b and c discordant ones among n pairs.

    Holds every difference that the score test does not reject; unlike Wald's it has a width when b = c = 0 and stays
    within -1 and 1. Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    assert min(b, c) >= 0
    assert max(b + c, 1) <= n
    estimate = (b - c) / n

    def edge(outside: float) -> float:
        """Bisects between the estimate, which is never rejected, and an end of the range."""
        inside = estimate
        for _ in range(100):
            middle = (inside + outside) / 2
            if abs(_score(b, c, n, middle)) <= z:
                inside = middle
            else:
                outside = middle
        return inside

    return edge(-1.0), edge(1.0)


def _score(b: int, c: int, n: int, difference: float) -> float:
    """Score statistic of the hypothesis p12 - p21 = difference, with p21 at its likeliest under it."""
    quadratic = 2.0 * n
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    root = max(linear * linear - 4 * quadratic * constant, 0.0)
    p21 = (sqrt(root) - linear) / (2 * quadratic)
    variance = n * (2 * p21 + difference * (1 - difference))
    distance = b - c - n * difference
    if variance <= 0.0:
        return 0.0 if distance == 0 else float("inf") if distance > 0 else float("-inf")
    return distance / sqrt(variance)
