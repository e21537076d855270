"""Confidence interval of a ratio of medians from samples taken in turn, which noise of the machine ties together in
time."""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np

from runtime.backend import Array

RESAMPLES = 1000
_Z95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution
_CHUNK = 50  # resamples held in memory at once


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
    seed.
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
    wider = _widening(ceil(blocks / length))
    return ratio, ratio * float(min(low, 1.0)) ** wider, ratio * float(max(high, 1.0)) ** wider


def _widening(runs: int) -> float:
    """t(97.5 %, runs - 1) / z(97.5 %), times the root that makes a variance over `runs` unbiased; 1 for many runs.

    The quantile of t by the Cornish-Fisher expansion: within 1 % from 5 degrees of freedom on (Abramowitz and Stegun,
    26.7.5).
    """
    degrees = max(runs - 1, 1)
    terms = (
        _Z95,
        (_Z95**3 + _Z95) / 4,
        (5 * _Z95**5 + 16 * _Z95**3 + 3 * _Z95) / 96,
        (3 * _Z95**7 + 19 * _Z95**5 + 17 * _Z95**3 - 15 * _Z95) / 384,
    )
    quantile = sum(term / degrees**power for power, term in enumerate(terms))
    return float(quantile / _Z95 * sqrt((degrees + 1) / degrees))


def _medians(samples: Array, rows: Array) -> Array:
    """Median of each resample: rows (R, blocks) -> (R,)."""
    drawn = samples[rows].reshape(len(rows), -1)
    medians: Array = np.median(drawn, axis=1)
    return medians
