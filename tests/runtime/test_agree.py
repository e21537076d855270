"""Worked by hand on three images."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.agree import agree

A = np.array([[1.0, 2.0, -4.0], [0.0, 1.0, 3.0], [5.0, 0.0, 1.0]], np.float32)


def test_differences_and_classes() -> None:
    b = A.copy()
    b[1] = [3.5, 1.0, 3.0]
    result = agree(A, b)
    assert result.max_abs == 3.5
    assert result.max_rel == 3.5 / 5.0
    assert result.top1_agreement == pytest.approx(2 / 3)
    assert result.nonfinite == 0


def test_half_precision_is_compared_in_full() -> None:
    result = agree(A, (A + np.float32(0.001)).astype(np.float16))
    assert result.max_abs is not None
    assert 0 < result.max_abs < 0.01
    assert result.top1_agreement == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    b = A.copy()
    b[2, 1] = bad
    for first, second in ((A, b), (b, A), (b, b)):
        result = agree(first, second)
        assert result.max_abs is None
        assert result.max_rel is None
        assert result.top1_agreement == pytest.approx(2 / 3)
        assert result.nonfinite == 1


def test_a_reference_of_zeros() -> None:
    zeros = np.zeros((2, 3))
    assert agree(zeros, zeros).max_rel == 0.0
    assert agree(zeros, zeros + 1).max_rel is None
    assert agree(zeros, zeros + 1).max_abs == 1.0


def test_other_shapes_are_a_bug() -> None:
    with pytest.raises(AssertionError, match=r"\(3, 3\) and \(2, 3\)"):
        agree(A, A[:2])
    with pytest.raises(AssertionError):
        agree(A[0], A[0])
