"""Intervals and tests: the ratio of two medians from samples taken in turn, and the accuracies, or any metric, of two
networks on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Literal

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from runtime.backends import Array

RESAMPLES = 1000
Z95 = float(stats.norm.ppf(0.975))
METHOD = "difference: Tango's asymptotic score interval (1998); p: exact McNemar test, two-sided"
BOOTSTRAP = "difference and p: paired bootstrap over images, percentile interval"
Decision = Literal["yes", "no", "undecided"]
_CHUNK = 50  # resamples held in memory at once
_MOST_IMAGES = 10_000_000


def run_length(blocks: int) -> int:
    """Consecutive blocks that are drawn together: the root of their number, so that the runs grow with the
    experiment, but at least five runs.

    Neighbouring samples share what else the machine does; drawn one by one they would count as independent and the
    interval would be too narrow. Kuensch, Annals of Statistics 17 (1989); Politis and Romano (1992) for the circular
    form.
    """
    return max(1, min(ceil(sqrt(blocks)), blocks // 5))


def ratio_interval(first: Array, other: Array, *, seed: int = 0) -> tuple[float, float, float]:
    """(ratio, low, high): median(first) / median(other) and its 95 % interval, by a circular block bootstrap.

    first, other: float (blocks, samples a block), row i of both taken in the same block, rows in the order of time.
    Both are resampled by the same runs of rows, so what slows a block slows both sides. Percentile interval, fixed
    seed, as wide as Student's t asks for so few runs.
    """
    blocks = len(first)
    assert blocks == len(other)
    assert blocks > 0
    length = run_length(blocks)
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, blocks, (RESAMPLES, ceil(blocks / length)))
    ratios = np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, _CHUNK):
        part = starts[begin : begin + _CHUNK, :, None] + np.arange(length)
        rows = part.reshape(len(part), -1)[:, :blocks] % blocks
        ratios[begin : begin + _CHUNK] = _medians(first, rows) / _medians(other, rows)
    ratio = float(np.median(first) / np.median(other))
    low, high = np.percentile(ratios, [2.5, 97.5]) / ratio
    wider = widening(ceil(blocks / length))
    return ratio, ratio * float(min(low, 1.0)) ** wider, ratio * float(max(high, 1.0)) ** wider


def widening(runs: int) -> float:
    """t(97.5 %, runs - 1) / z(97.5 %), times the root that makes a variance over `runs` unbiased; 1 for many runs."""
    degrees = max(runs - 1, 1)
    return float(stats.t.ppf(0.975, degrees) / Z95 * sqrt((degrees + 1) / degrees))


def _medians(samples: Array, rows: Array) -> Array:
    """Median of each resample: rows (R, blocks) -> (R,)."""
    drawn = samples[rows].reshape(len(rows), -1)
    medians: Array = np.median(drawn, axis=1)
    return medians


@dataclass(frozen=True)
class PairedAccuracy:
    """Metric of the second network less that of the first, on the same n images.

    `only_first` and `only_second` count the images that just one of them gets right, or scores higher on.
    `difference_pp` and its 95 % interval `ci95_pp` are in percentage points; `p_value` tests that there is
    none.
    """

    n: int
    only_first: int
    only_second: int
    difference_pp: float
    ci95_pp: tuple[float, float]
    p_value: float
    method: str = METHOD


def paired_accuracy(first: Array, second: Array) -> PairedAccuracy:
    """first, second: (N,), the score of each image: bool, or floats in 0..1."""
    assert first.shape == second.shape
    if not first.dtype == second.dtype == np.bool_:
        return paired_metric(first, second, mean_score, (first, second))
    n = len(first)
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(second & ~first))
    low, high = tango_interval(only_second, only_first, n)
    return PairedAccuracy(
        n, only_first, only_second, 100 * (only_second - only_first) / n, (100 * low, 100 * high),
        mcnemar_exact(only_first, only_second),
    )  # fmt: skip


Metric = Callable[[Any, Array], Array]
"""(statistics of N images, how often each of them counts (R, N), int64) -> (R,): 0 is worst, 1 is best. Every image
once is a row of ones; a resample of a bootstrap is another row."""


def mean_score(scores: Any, counts: Array) -> Array:
    """`Metric` of a task that is judged by the mean of its images' scores (N,)."""
    means: Array = counts @ np.asarray(scores, np.float64) / counts.sum(axis=1)
    return means


def resamples(n: int) -> Iterator[Array]:
    """How often each of `n` images is drawn, int64 (some, n), RESAMPLES rows in all; the same every time."""
    generator = np.random.default_rng(0)
    for start in range(0, RESAMPLES, _CHUNK):
        rows = min(_CHUNK, RESAMPLES - start)
        yield np.stack([np.bincount(generator.integers(0, n, n), minlength=n) for _ in range(rows)])


def metric_interval(statistics: Any, metric: Metric, n: int) -> tuple[float, float]:
    """95 % percentile interval of a metric of n images, by a bootstrap over them."""
    values = np.concatenate([metric(statistics, counts) for counts in resamples(n)])
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def paired_metric(first: Any, second: Any, metric: Metric, scores: tuple[Array, Array]) -> PairedAccuracy:
    """Two networks by a metric of their statistics on the same N images; `scores` (N,) of each image, of both, count
    the images that one does better on. By a bootstrap over the images, the same ones for both; the p-value is twice
    the share of resamples on the other side of 0."""
    change = scores[1].astype(np.float64) - scores[0].astype(np.float64)
    n = len(change)
    whole = np.ones((1, n), np.int64)
    difference = float((metric(second, whole) - metric(first, whole))[0])
    values = np.concatenate([metric(second, counts) - metric(first, counts) for counts in resamples(n)])
    low, high = np.quantile(values, (0.025, 0.975))
    tail = min(np.mean(values <= 0), np.mean(values >= 0))
    better, worse = int(np.count_nonzero(change > 0)), int(np.count_nonzero(change < 0))
    limits = (100 * float(low), 100 * float(high))
    return PairedAccuracy(n, worse, better, 100 * difference, limits, min(1.0, 2 * float(tail)), BOOTSTRAP)


def non_inferior(difference: PairedAccuracy, margin_pp: float) -> Decision:
    """Whether the second is worse by no more than the margin: "yes" where the whole interval says so, "no" where the
    whole interval says it is worse, else "undecided"."""
    low, high = difference.ci95_pp
    return "yes" if low >= -margin_pp else "no" if high < -margin_pp else "undecided"


def images_needed(difference: PairedAccuracy, margin_pp: float) -> int | None:
    """How many images would show that the second is worse by no more than the margin, were the two to differ as often
    as on these; None where no number would, or where scores are no counts."""
    if difference.method != METHOD:
        return None  # counts of images alone do not say how far a mean of scores spreads
    shares = np.array([difference.only_second, difference.only_first]) / difference.n
    if 100 * (shares[1] - shares[0]) >= margin_pp:
        return None

    def spare(n: float) -> float:
        return 100 * tango_interval(n * shares[0], n * shares[1], n)[0] + margin_pp

    if spare(_MOST_IMAGES) < 0:
        return None
    return difference.n if spare(difference.n) >= 0 else ceil(brentq(spare, difference.n, _MOST_IMAGES, xtol=0.5))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value of b against c discordant pairs. McNemar, Psychometrika 12 (1947); exact form: Fagerland,
    Lydersen and Laake, Statistics in Medicine 33 (2014)."""
    return float(stats.binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def tango_interval(b: float, c: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Interval of p12 - p21, estimated by (b - c)/n from b and c discordant ones among n pairs.

    Holds every difference that the score test does not reject; unlike Wald's it has a width when b = c = 0 and stays
    within -1 and 1. Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    assert min(b, c) >= 0
    assert max(b + c, 1) <= n * (1 + 1e-9)
    estimate = (b - c) / n

    def edge(outside: float) -> float:
        """Between the estimate, which is never rejected, and an end of the range, which may not be either."""

        def excess(difference: float) -> float:
            return min(abs(_score(b, c, n, difference)), 2 * z) - z  # without variance the score is infinite

        if estimate == outside or excess(outside) <= 0:
            return outside
        return float(brentq(excess, estimate, outside, xtol=1e-15, rtol=1e-12))

    return edge(-1.0), edge(1.0)


def _score(b: float, c: float, n: float, difference: float) -> float:
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
