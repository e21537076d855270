"""How outputs are judged: a score for each image and, where a metric is not their mean, statistics of each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from runtime.backends import Array
from runtime.errors import UserError
from runtime.measure.statistics import (
    Metric,
    PairedAccuracy,
    mean_score,
    metric_interval,
    paired_accuracy,
    paired_metric,
)

Outputs: TypeAlias = "Array | dict[str, Array]"
"""Of a batch, each (B, ...): the one output, or several by their names."""
Statistics: TypeAlias = "Array | list[Array]"
"""What a metric needs of each image: (N, ...), or where images have unlike numbers of things, an array for each."""
Score = Callable[[Any, Array], Array]
"""(outputs (B, ...), targets (B, ...)) -> (B,): bool, or floats in 0..1."""


@dataclass(frozen=True)
class Judge:
    """How a task judges outputs: by the mean of its images' scores or, with `statistics`, by a `metric` of those of all
    images."""

    score: Score
    outputs: tuple[str, ...] = ("logits",)
    """Names of the outputs that are judged; the only one of a session may have any name."""
    statistics: Callable[[Any, Array], Statistics] | None = None
    """(outputs, targets) -> of each image of the batch."""
    metric: Metric | None = None
    whole: bool = True
    """Whether all outputs are held, as classes and a metric of the user's own need."""


@dataclass(frozen=True)
class Judged:
    """`scores` (N,), bool or floats in 0..1, and `statistics` of N images, None where the metric is their mean. An
    image with an output that is not a number scores 0."""

    scores: Array
    statistics: Statistics | None = None
    metric: Metric = field(default=mean_score, compare=False)

    @property
    def value(self) -> float:
        """The metric over all images: 0 is worst, 1 is best."""
        if self.statistics is None:
            return float(self.scores.mean())
        return fraction(self.metric(self.statistics, np.ones((1, len(self.scores)), np.int64)))

    def against(self, before: Judged) -> PairedAccuracy:
        """This less `before`, of the same images."""
        if self.statistics is None or before.statistics is None:
            return paired_accuracy(before.scores, self.scores)
        return paired_metric(before.statistics, self.statistics, self.metric, (before.scores, self.scores))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the metric by a bootstrap; None where it counts images, which have Wilson's."""
        if self.statistics is None and self.scores.dtype == np.bool_:
            return None
        statistics = self.scores if self.statistics is None else self.statistics
        return metric_interval(statistics, self.metric, len(self.scores))


class Judging:
    """Scores and statistics, batch by batch."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.scores, self._statistics = judge, list[Array](), list[Statistics]()

    def add(self, outputs: Any, targets: Array) -> None:
        """UserError where the task's scores are none."""
        self.scores.append(scores_of(self.judge.score, outputs, targets))
        if self.judge.statistics is not None:
            self._statistics.append(self.judge.statistics(outputs, targets))

    def judged(self) -> Judged:
        scores = np.concatenate(self.scores)
        if self.judge.statistics is None or self.judge.metric is None:
            return Judged(scores)
        return Judged(scores, joined(self._statistics, len(scores)), self.judge.metric)


def joined(parts: Sequence[Statistics], images: int) -> Statistics:
    """The statistics of `images` images from those of batches. UserError where they are not one for each."""
    every: Statistics
    if isinstance(parts[0], list):
        every = [np.asarray(one) for part in parts for one in part]
    else:
        every = np.concatenate([np.asarray(part) for part in parts])
    if len(every) != images:
        problem = f"the task's statistics are {len(every)} for {images} images"
        raise UserError(problem, "those of each image", "mend task.name's statistics")
    return every


def arrays_of(outputs: Any) -> list[Array]:
    """The arrays of one output, or of several."""
    return list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]


def mapped(function: Callable[[Any], Any], outputs: Any) -> Any:
    """The function of the one output, or of each of several."""
    return {k: function(v) for k, v in outputs.items()} if isinstance(outputs, Mapping) else function(outputs)


def rows_of(outputs: Any) -> int:
    return len(arrays_of(outputs)[0])


def scores_of(score: Score, outputs: Any, targets: Array) -> Array:
    """The score of each image, 0 where an output is not a number. UserError where they are no scores."""
    scores, n = np.asarray(score(outputs, targets)), rows_of(outputs)
    if scores.shape != (n,):
        raise UserError(
            f"the task's score has the shape {scores.shape} for {n} images",
            "one number an image",
            "mend task.name's score",
        )
    numbers: Array = np.all([~np.isnan(array).reshape(n, -1).any(axis=1) for array in arrays_of(outputs)], axis=0)
    if scores.dtype == np.bool_:
        return scores & numbers
    scores = np.where(numbers, scores.astype(np.float64), 0.0)
    if not ((scores >= 0) & (scores <= 1)).all():  # also where a score is not a number
        raise UserError(
            f"the task's scores reach from {scores.min():g} to {scores.max():g}",
            "numbers from 0 (worst) to 1 (best)",
            "mend task.name's score",
        )
    return scores


def fraction(values: Array) -> float:
    """What a metric says of one sample. UserError where it is not from 0 to 1."""
    value = float(np.asarray(values).reshape(-1)[0])
    if not 0 <= value <= 1:  # also where it is not a number
        raise UserError(f"the task's metric is {value:g}", "0 (worst) to 1 (best)", "mend task.name's metric")
    return value


def demand_outputs(there: Sequence[str], names: Sequence[str], whose: str) -> None:
    """UserError where one of `names` is not among the outputs `there`; a single output may have any name."""
    missing = [name for name in names if name not in there]
    if missing and not len(there) == len(names) == 1:
        expected = f"one called {missing[0]}"
        raise UserError(f"{whose} has the outputs {list(there)}", expected, "name the network's output so")


def chosen(outputs: dict[str, Array], names: Sequence[str], whose: str) -> Outputs:
    """Those that are judged: one alone, or several by name. UserError where they are not there."""
    demand_outputs(list(outputs), names, whose)
    if len(names) == 1:
        return outputs.get(names[0], next(iter(outputs.values())))
    return {name: outputs[name] for name in names}
