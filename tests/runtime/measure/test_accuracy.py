"""Accuracy on images whose right answers are known from NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.backends import Array, TensorSpec, open_session
from runtime.errors import UserError
from runtime.measure.accuracy import Accuracy, accuracy, agree
from runtime.measure.judged import Judge
from tests.runtime.nets import expected, images, write_onnx


@dataclass
class Echo:
    """A session whose logits are its input; remembers the batches it was given."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = (TensorSpec("scores", (None, 3), "float32"),)
    name: str = "echo"
    batches: list[int] = field(default_factory=list)

    def bind(self, feeds: Mapping[str, Array]) -> None:
        (self.value,) = feeds.values()
        self.batches.append(len(self.value))

    def launch(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def fetch(self) -> dict[str, Array]:
        return {self.outputs[0].name: self.value}


def echo(shape: int | None = None, smallest: int | None = None, largest: int | None = None) -> Echo:
    low, high = (smallest, 3) if smallest else None, (largest, 3) if largest else None
    return Echo((TensorSpec("x", (shape, 3), "float32", low, high),))


LOGITS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0]]
LABELS = np.array([0, 1, 2, 2, 1, 0, 0])


def largest(logits: Array) -> Array:
    classes: Array = logits.argmax(axis=1)
    return classes


def right(logits: Array, labels: Array) -> Array:
    hits: Array = largest(logits) == labels
    return hits


def test_batches_of_tensors_through_onnx_runtime(tmp_path: Path) -> None:
    batch = images(10)
    labels = expected(batch).argmax(axis=1)
    labels[[2, 7]] = (labels[[2, 7]] + 1) % 4
    split = [(torch.from_numpy(batch[:6]), torch.from_numpy(labels[:6])), (batch[6:], labels[6:])]
    session = open_session(write_onnx(tmp_path / "net.onnx"), device="cpu", threads=1)
    result = accuracy(session, split, Judge(right))
    assert result.mean == pytest.approx(0.8)
    assert result.n == 10
    assert list(np.flatnonzero(~result.scores)) == [2, 7]
    np.testing.assert_allclose(result.outputs, expected(batch), rtol=0, atol=1e-5)
    session.close()


@pytest.mark.parametrize(
    ("session", "batches"),
    [
        (echo(), [7]),
        (echo(smallest=1, largest=3), [3, 3, 1]),
        (echo(smallest=2, largest=3), [3, 3, 2]),
        (echo(smallest=10, largest=12), [10]),
        (echo(shape=4), [4, 4]),
    ],
)
def test_batches_are_cut_and_filled_to_what_the_session_takes(session: Echo, batches: list[int]) -> None:
    result = accuracy(session, [(LOGITS, LABELS)], Judge(right))  # type: ignore[arg-type]
    assert session.batches == batches
    assert result.n == 7
    assert result.mean == pytest.approx(5 / 7)
    np.testing.assert_array_equal(result.outputs, LOGITS)


def test_not_a_number_is_wrong() -> None:
    logits = LOGITS.copy()
    logits[0, 0] = np.nan  # argmax would still say class 0
    result = accuracy(echo(), [(logits, LABELS)], Judge(right))  # type: ignore[arg-type]
    assert result.mean == pytest.approx(4 / 7)
    assert not result.scores[0]


def test_sessions_that_are_no_classifier() -> None:
    spec = TensorSpec("x", (None, 3), "float32")
    with pytest.raises(UserError, match="echo has 2 inputs; one, the images"):
        accuracy(Echo((spec, spec)), [(LOGITS, LABELS)], Judge(right))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"echo has the outputs \['x', 'x'\]; one called logits"):
        accuracy(Echo((spec,), (spec, spec)), [(LOGITS, LABELS)], Judge(right))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the test split has no images"):
        accuracy(echo(), [], Judge(right))  # type: ignore[arg-type]


def test_top5_and_classes_by_hand() -> None:
    """Six classes; the class of image i has rank 1, 3, 5, 6, and one logit is not a number."""
    order = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], np.float32)
    logits = np.stack([order] * 5)
    logits[4, 0] = np.nan
    labels = np.array([0, 2, 4, 5, 1])
    told = Accuracy(0.2, 5, np.array([True, False, False, False, False]), logits, labels)
    assert told.top5 == 3 / 5
    assert (told.of_class(0), told.of_class(5), told.of_class(3)) == (1.0, 0.0, None)
    few = Accuracy(0.2, 5, told.scores, logits[:, :5], labels)
    assert few.top5 is None


def measured(right: int, n: int, classes: int = 10) -> Accuracy:
    """Labels spread evenly over the classes."""
    correct = np.arange(n) < right
    return Accuracy(right / n, n, correct, np.zeros((n, classes), np.float32), np.arange(n) % classes)


def test_chance_is_what_always_the_commonest_class_reaches() -> None:
    """Of 200 images in ten classes 20 are expected; 31 or more of them in less than one case of a hundred."""
    assert measured(20, 200).at_chance and measured(30, 200).at_chance
    assert not measured(31, 200).at_chance and not measured(200, 200).at_chance
    skewed = Accuracy(0.9, 100, np.arange(100) < 90, np.zeros((100, 2), np.float32), (np.arange(100) >= 90).astype(int))
    assert skewed.at_chance


A = np.array([[1.0, 2.0, -4.0], [0.0, 1.0, 3.0], [5.0, 0.0, 1.0]], np.float32)


def test_differences_and_classes() -> None:
    b = A.copy()
    b[1] = [3.5, 1.0, 3.0]
    result = agree(A, b, largest)
    assert result.max_abs == 3.5
    assert result.max_rel == 3.5 / 5.0
    assert result.top1_agreement == pytest.approx(2 / 3)
    assert result.nonfinite == 0


def test_half_precision_is_compared_in_full() -> None:
    result = agree(A, (A + np.float32(0.001)).astype(np.float16), largest)
    assert result.max_abs is not None
    assert 0 < result.max_abs < 0.01
    assert result.top1_agreement == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    b = A.copy()
    b[2, 1] = bad
    for first, second in ((A, b), (b, A), (b, b)):
        result = agree(first, second, largest)
        assert result.max_abs is None
        assert result.max_rel is None
        assert result.top1_agreement == pytest.approx(2 / 3)
        assert result.nonfinite == 1


def test_a_reference_of_zeros() -> None:
    zeros = np.zeros((2, 3))
    assert agree(zeros, zeros, largest).max_rel == 0.0
    assert agree(zeros, zeros + 1, largest).max_rel is None
    assert agree(zeros, zeros + 1, largest).max_abs == 1.0


def test_other_shapes_are_a_bug() -> None:
    with pytest.raises(AssertionError, match=r"\(3, 3\) and \(2, 3\)"):
        agree(A, A[:2], largest)
    with pytest.raises(AssertionError):
        agree(A[0], A[0], largest)
