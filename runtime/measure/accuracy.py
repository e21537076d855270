"""The metric of a session on a split with targets, and how far two sets of outputs for the same images lie apart.

What a metric is the task says, which comes in as a `Judge`; top-5, classes and chance are those of a classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from runtime.backends import Array, Session
from runtime.errors import UserError
from runtime.measure.judged import (
    Judge,
    Judged,
    Judging,
    Outputs,
    Statistics,
    arrays_of,
    chosen,
    demand_outputs,
    mapped,
    rows_of,
)
from runtime.measure.statistics import Metric, mean_score

Answer = Callable[[Any], "Array | None"]
"""outputs (B, ...) -> the class of each image (B,); None where a task has no such thing."""
OUTPUT_BYTES = 64 << 20
"""Of the outputs that are held of each form, where not all are: the first images, as many as fit."""


@dataclass(frozen=True)
class Accuracy:
    """`mean`, the metric of n images; `scores` (N,), bool or floats in 0..1, in the order of the images. `outputs`
    float (M, ...) and `targets` (M, ...) are of the first M <= N images, of all where the judge asks for the whole.

    An image with an output that is not a number scores 0.
    """

    mean: float
    n: int
    scores: Array
    outputs: Any
    targets: Array
    statistics: Statistics | None = None
    metric: Metric = field(default=mean_score, compare=False)

    @property
    def judged(self) -> Judged:
        return Judged(self.scores, self.statistics, self.metric)

    @property
    def top5(self) -> float | None:
        """Fraction of images whose class is among the five largest logits; None with five classes or fewer."""
        if self.outputs.shape[1] <= 5:
            return None
        best = np.argpartition(self.outputs, -5, axis=1)[:, -5:]
        hits = (best == self.targets[:, None]).any(axis=1) & ~np.isnan(self.outputs).any(axis=1)
        return float(hits.mean())

    def of_class(self, label: int) -> float | None:
        """Mean score of the images of this class; None where there are none."""
        mine = self.scores[self.targets == label]
        return float(mine.mean()) if len(mine) else None

    @property
    def at_chance(self) -> bool:
        """Whether always answering the commonest class may be as good: by a one-sided binomial test at 1 %."""
        _, counts = np.unique(self.targets, return_counts=True)
        chance = max(float(counts.max()) / self.n, 1 / max(self.outputs.shape[1], 1))
        right = int(np.count_nonzero(self.scores))
        return chance >= 1 or float(binomtest(right, self.n, chance, alternative="greater").pvalue) > 0.01


def accuracy(session: Session, batches: Iterable[tuple[Any, Any]], judge: Judge) -> Accuracy:
    """Runs every batch (x (B, ...), targets (B, ...): arrays, or tensors on the CPU) through the session's input.

    Batches larger than an engine's profile allows are cut, smaller ones filled up with copies of the last image whose
    results are dropped; so are batches of a graph with a fixed batch size. UserError for a session without exactly
    one input, or without the outputs that are judged.
    """
    judging, held = Judging(judge), _Held(judge.whole)
    for images, truth in batches:
        targets = np.asarray(truth)
        for outputs in outputs_of(session, np.asarray(images), judge.outputs):
            piece, targets = targets[: rows_of(outputs)], targets[rows_of(outputs) :]
            judging.add(outputs, piece)
            held.add(outputs, piece)
    if not judging.scores:
        raise UserError("the test split has no images", "at least one image", "check the data section")
    judged = judging.judged()
    outputs, truths = held.arrays()
    return Accuracy(judged.value, len(judged.scores), judged.scores, outputs, truths, judged.statistics, judged.metric)


class _Held:
    """Outputs and targets of all images, or of the first ones that fit into OUTPUT_BYTES."""

    def __init__(self, whole: bool) -> None:
        self._whole, self._bytes = whole, 0
        self._outputs, self._targets = list[Any](), list[Array]()

    def add(self, outputs: Any, targets: Array) -> None:
        size = sum(array.nbytes for array in arrays_of(outputs))
        rows = len(targets)
        if not self._whole:
            rows = min(rows, int((OUTPUT_BYTES - self._bytes) * rows // max(size, 1)))
            rows = max(rows, 0 if self._outputs else 1)  # one image at the least
        if rows:
            self._bytes += size * rows // len(targets)
            self._outputs.append(mapped(lambda array: np.array(array[:rows]), outputs))
            self._targets.append(targets[:rows])
        if rows < len(targets):
            self._whole, self._bytes = False, OUTPUT_BYTES

    def arrays(self) -> tuple[Any, Array]:
        first = self._outputs[0]
        if isinstance(first, Mapping):
            outputs: Any = {name: np.concatenate([one[name] for one in self._outputs]) for name in first}
        else:
            outputs = np.concatenate(self._outputs)
        return outputs, np.concatenate(self._targets)


def outputs_of(session: Session, images: Array, names: Sequence[str]) -> Iterator[Outputs]:
    """The outputs of these names for the images, in pieces that the session takes. UserError for a session without
    exactly one input, or without them."""
    if len(session.inputs) != 1:
        raise UserError(f"{session.name} has {len(session.inputs)} inputs", "one, the images", "export it so")
    (spec,) = session.inputs
    demand_outputs([one.name for one in session.outputs], names, session.name)
    fixed = spec.shape[0]
    smallest = fixed or (spec.smallest[0] if spec.smallest else 1)
    largest = fixed or (spec.largest[0] if spec.largest else len(images))
    for start in range(0, len(images), largest):
        piece = images[start : start + largest]
        missing = max(smallest - len(piece), 0)
        filled = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)]) if missing else piece
        session.bind({spec.name: filled.astype(spec.dtype, copy=False)})
        session.launch()
        session.wait()
        each = {name: value[: len(piece)] for name, value in session.fetch().items()}
        yield chosen(each, names, session.name)


@dataclass(frozen=True)
class Agreement:
    """Of b with a, the reference.

    `max_abs` is the largest |a - b|, `max_rel` that over the largest |a|: relative to the outputs' scale, because
    single outputs come close to zero. Both are null when a value is not finite. `top1_agreement` is the fraction of
    images that both give the same answer; an image with a value that is not finite in either counts as disagreeing. It
    is null where an image has no one answer. `nonfinite` counts the images with such values.
    """

    max_abs: float | None
    max_rel: float | None
    top1_agreement: float | None
    nonfinite: int


def agree(a: Any, b: Any, answer: Answer) -> Agreement:
    """a, b: outputs (N, ...), or several by name, for the same images in the same order, any floating type; of several
    the one that is furthest off counts."""
    if isinstance(a, Mapping):
        assert isinstance(b, Mapping)
        return _furthest([agree(a[name], b[name], lambda _: None) for name in a])
    assert a.shape == b.shape, f"outputs of shapes {a.shape} and {b.shape}"
    assert a.ndim >= 2, f"outputs of shape {a.shape}"
    assert a.size > 0
    first, second = a.astype(np.float64), b.astype(np.float64)
    finite: Array = np.isfinite(np.concatenate([first, second], axis=1)).reshape(len(a), -1).all(axis=1)
    nonfinite = int(len(finite) - np.count_nonzero(finite))
    answers = answer(first), answer(second)
    same = None if answers[0] is None else float(np.mean((answers[0] == answers[1]) & finite))
    if nonfinite:
        return Agreement(None, None, same, nonfinite)
    max_abs, scale = float(np.abs(first - second).max()), float(np.abs(first).max())
    if scale == 0.0:
        return Agreement(max_abs, 0.0 if max_abs == 0.0 else None, same, 0)
    return Agreement(max_abs, max_abs / scale, same, 0)


def _furthest(each: Sequence[Agreement]) -> Agreement:
    nonfinite = max(one.nonfinite for one in each)
    figures = [[one.max_abs for one in each], [one.max_rel for one in each]]
    worst = [None if None in of else max(v for v in of if v is not None) for of in figures]
    return Agreement(worst[0], worst[1], None, nonfinite)
