"""The metric from hop to hop: what each form of a network changed, and the first hop that broke the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import lookup
from pipeline.check.forms import Form, Results
from pipeline.check.results import ClassAccuracy, Hop, Role
from pipeline.tasks import Task
from runtime.backends import Array
from runtime.errors import UserError
from runtime.measure.accuracy import Accuracy, agree
from runtime.measure.statistics import PairedAccuracy, non_inferior

MASKED = "masked"


@dataclass(frozen=True)
class Images:
    """What the test images show: class names, and how a network's input becomes a pixel again, (x * std + mean)."""

    names: Sequence[str] = ()
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)


def hop(model: Role, form: Form, results: Results, margin_pp: float, task: Task) -> Hop:
    """Tensors, answers and metric of a form against the form before it."""
    assert form.source is not None
    before, after = results[form.source], results[form.name]
    if isinstance(before, str) or isinstance(after, str):
        reason = after if isinstance(after, str) else before
        return Hop(model, form.source, form.name, None, None, None, None, None, None, str(reason))
    outputs = agree(before.outputs, after.outputs, task.answers)
    paired = after.judged.against(before.judged)
    return Hop(
        model=model,
        source=form.source,
        target=form.name,
        max_abs=outputs.max_abs,
        max_rel=outputs.max_rel,
        top1_agreement=outputs.top1_agreement,
        accuracy_delta=after.mean - before.mean,
        paired=paired,
        non_inferior=non_inferior(paired, margin_pp),
        reason=f"outputs of {outputs.nonfinite} images are not finite" if outputs.nonfinite else None,
    )


def drops(forms: Sequence[Form], results: Results, reference: Accuracy) -> list[tuple[Form, PairedAccuracy]]:
    """Each measured form against `reference` on the same images, in the order of the line."""
    return [
        (form, result.judged.against(reference.judged))
        for form in forms
        if isinstance(result := results[form.name], Accuracy)
    ]


def title(form: Form) -> str:
    """`onnx to simplified`, and for the first form of a line its name."""
    if form.source is None:
        return "the network before the cut" if form.name == MASKED else form.name
    return f"{form.source} to {form.name}"


def by_class(
    images: Images, dense: Accuracy, compact: Accuracy, forms: Results, task: Task
) -> tuple[ClassAccuracy, ...]:
    """The metric of every class that the split has images of, the one that lost most first; `forms` are compact's. ()
    where the task has no classes."""
    if task.answer is None:
        return _pooled_by_class(images, dense, compact, forms, task)
    measured = {name: result for name, result in forms.items() if isinstance(result, Accuracy)}
    rows = [
        ClassAccuracy(
            images.name(label),
            int(np.count_nonzero(dense.targets == label)),
            _of_class(dense, label),
            _of_class(compact, label),
            {name: _of_class(result, label) for name, result in measured.items()},
        )
        for label in range(dense.outputs.shape[1])
        if (dense.targets == label).any()
    ]
    return tuple(sorted(rows, key=lambda row: row.compact - row.dense))


def _pooled_by_class(
    images: Images, dense: Accuracy, compact: Accuracy, forms: Results, task: Task
) -> tuple[ClassAccuracy, ...]:
    """By the task's metric of each class, over all n images; classes that no image has are left out."""
    if task.pooled is None or task.pooled.by_class is None:
        return ()
    function = task.pooled.by_class
    measured = {name: one.statistics for name, one in forms.items() if isinstance(one, Accuracy)}
    each = {name: function(one) for name, one in measured.items() if one is not None}
    assert dense.statistics is not None and compact.statistics is not None
    first, second = function(dense.statistics), function(compact.statistics)
    rows = [
        ClassAccuracy(images.name(k), dense.n, float(first[k]), float(second[k]), _at(each, k))
        for k in range(len(first))
        if not np.isnan(first[k]) and not np.isnan(second[k])
    ]
    return tuple(sorted(rows, key=lambda row: row.compact - row.dense))


def _at(each: Mapping[str, Array], label: int) -> dict[str, float]:
    return {name: float(values[label]) for name, values in each.items() if not np.isnan(values[label])}


def beside(results: Results, task: Task) -> dict[str, dict[str, float]]:
    """Each other metric of a task whose metric comes from all images together, at every measured form."""
    if task.pooled is None:
        return {}
    measured = {name: one.statistics for name, one in results.items() if isinstance(one, Accuracy)}
    values: dict[str, dict[str, float]] = {}
    for metric, function in task.pooled.beside.items():
        each = {
            name: function(one, np.ones((1, len(one)), np.int64)) for name, one in measured.items() if one is not None
        }
        values[metric] = {name: float(value[0]) for name, value in each.items()}
    return values


def macro_f1(result: Accuracy, task: Task) -> float:
    """Mean over the classes that the split has images of, of 2 TP / (2 TP + FP + FN). An image with an output that is
    not a number counts for no class."""
    from sklearn.metrics import f1_score

    answers = task.answers(result.outputs)
    assert answers is not None
    numbers = ~np.isnan(result.outputs.reshape(len(answers), -1)).any(axis=1)
    classes = np.unique(result.targets)
    answers = np.where(numbers, answers, -1)
    return float(f1_score(result.targets, answers, labels=classes, average="macro", zero_division=0))


def _of_class(result: Accuracy, label: int) -> float:
    share = result.of_class(label)
    assert share is not None
    return share


def own_metric(spec: str | None) -> Callable[[Accuracy], float] | None:
    """check.metric as a function of what was measured. Raises UserError where it is not found or answers no number."""
    if spec is None:
        return None
    function = lookup.function_named(spec, "check.metric")

    def value(result: Accuracy) -> float:
        try:
            answer = float(function(result.outputs.copy(), result.targets.copy()))
        except Exception as error:  # the user's own code
            raise UserError(
                f"check.metric {spec} raised {type(error).__name__}: {error}",
                "a number for logits (N, K) and labels (N,)",
                "mend the function",
            ) from error
        if not math.isfinite(answer):
            raise UserError(f"check.metric {spec} answered {answer}", "a finite number", "mend the function")
        return answer

    return value


def metric_of(results: Mapping[str, Accuracy | str], metric: Callable[[Accuracy], float] | None) -> dict[str, Any]:
    """The user's metric at every measured form; {} without one."""
    if metric is None:
        return {}
    return {name: metric(result) for name, result in results.items() if isinstance(result, Accuracy)}
