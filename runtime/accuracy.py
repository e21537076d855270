"""Accuracy of a session on a labelled split, with what the paired statistics need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backend import Array, Session
from runtime.errors import UserError


@dataclass(frozen=True)
class Accuracy:
    """`top1` fraction of n images; `correct` bool (N,), `logits` float (N, K) and `labels` int64 (N,), all in the order
    of the images.

    An image with a logit that is not a number counts as wrong.
    """

    top1: float
    n: int
    correct: Array
    logits: Array
    labels: Array

    @property
    def top5(self) -> float | None:
        """Fraction of images whose class is among the five largest logits; None with five classes or fewer."""
        if self.logits.shape[1] <= 5:
            return None
        best = np.argpartition(self.logits, -5, axis=1)[:, -5:]
        found = (best == self.labels[:, None]).any(axis=1) & ~np.isnan(self.logits).any(axis=1)
        return float(found.mean())

    def of_class(self, label: int) -> float | None:
        """Fraction of the images of this class; None where there are none."""
        mine = self.correct[self.labels == label]
        return float(mine.mean()) if len(mine) else None


def accuracy(session: Session, batches: Iterable[tuple[Any, Any]]) -> Accuracy:
    """Runs every batch (x (B, ...), y int (B,): arrays, or tensors on the CPU) through the session's input.

    Batches larger than an engine's profile allows are cut, smaller ones filled up with copies of the last image whose
    results are dropped; so are batches of a graph with a fixed batch size. UserError for a session without exactly
    one input, or with several outputs of which none is called `logits`.
    """
    correct: list[Array] = []
    logits: list[Array] = []
    classes: list[Array] = []
    for images, labels in batches:
        results = np.concatenate(list(_logits(session, np.asarray(images))))
        wrong = np.isnan(results).any(axis=1)
        classes.append(np.asarray(labels))
        correct.append((results.argmax(axis=1) == classes[-1]) & ~wrong)
        logits.append(results)
    if not correct:
        raise UserError("the test split has no images", "at least one image", "check the data section")
    right = np.concatenate(correct)
    return Accuracy(float(right.mean()), len(right), right, np.concatenate(logits), np.concatenate(classes))


def _logits(session: Session, images: Array) -> Iterator[Array]:
    """Logits of the images in pieces that the session takes."""
    if len(session.inputs) != 1:
        raise UserError(f"{session.name} has {len(session.inputs)} inputs", "one, the images", "export a classifier")
    (spec,) = session.inputs
    output = _output(session)
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
        yield session.fetch()[output][: len(piece)]


def _output(session: Session) -> str:
    names = [spec.name for spec in session.outputs]
    if len(names) == 1:
        return names[0]
    if "logits" not in names:
        raise UserError(
            f"{session.name} has the outputs {names}", "one called logits", "name the classifier's output so"
        )
    return "logits"
