"""What the pages show of accuracy at every hop: rows of formatted figures out of a Report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import numbers
from .schema import ClassAccuracy, ModelFigures, Report
from .view import accuracy_with_interval

MASKED = "masked"


@dataclass(frozen=True)
class FormRow:
    """A form of the network; `figures` are those of `columns`, in their order."""

    name: str
    figures: list[str]


def columns(report: Report) -> list[str]:
    """Heads of the table of forms: top-1 of both networks, and top-5 and the user's metric where there are any."""
    models = (report.models.dense, report.models.compact)
    heads = ["Dense", "Compact"]
    if any(model.top5 for model in models):
        heads += ["Top-5, dense", "Top-5, compact"]
    if any(model.metric for model in models):
        heads += ["Metric, dense", "Metric, compact"]
    return heads


def forms(report: Report) -> list[FormRow]:
    """Each form in which one of the two networks was measured."""
    models = (report.models.dense, report.models.compact)
    wanted: list[Callable[[ModelFigures, str], str]] = [
        lambda model, hop: accuracy_with_interval(report, model.accuracy.get(hop)),
    ]
    if any(model.top5 for model in models):
        wanted.append(lambda model, hop: numbers.percent(model.top5.get(hop)))
    if any(model.metric for model in models):
        wanted.append(lambda model, hop: numbers.plain(model.metric.get(hop)))
    names = dict.fromkeys(name for model in reversed(models) for name in model.accuracy)
    return [
        FormRow(
            "torch, before the cut" if name == MASKED else name,
            ["-" if name == MASKED and not at else figure(models[at], name) for figure in wanted for at in (0, 1)],
        )
        for name in names
        if any(model.accuracy.get(name) is not None for model in models)
    ]


def class_heads(report: Report) -> list[str]:
    return ["Images", "Dense", "Compact"] + (
        ["Compact at its lowest"] if any(one.forms for one in report.classes) else []
    )


def classes(report: Report) -> list[FormRow]:
    """Each class through torch, and the form of compact in which the class does worst."""
    told = any(one.forms for one in report.classes)
    return [
        FormRow(
            one.name,
            [numbers.count(one.n), numbers.percent(one.dense), numbers.percent(one.compact)]
            + ([_lowest(one)] if told else []),
        )
        for one in report.classes
    ]


def _lowest(one: ClassAccuracy) -> str:
    """`95.00 %, fp16`; the first of equals, as the line goes."""
    if not one.forms:
        return ""
    form = min(one.forms, key=lambda name: one.forms[name])
    return f"{numbers.percent(one.forms[form])}, {form}" if one.forms[form] < one.compact else "as in torch"


def first_broken(report: Report) -> str | None:
    """Which hop broke the accuracy budget first; None where none did."""
    broken = report.broken
    if broken is None:
        return None
    return (
        f"The budget was broken first from {label(broken.source)} to {label(broken.target)}: {broken.drop_pp:.2f} "
        f"percentage points lost against dense, at most {broken.limit_pp:g} allowed."
    )


def label(hop: str) -> str:
    """A form of the network as people read it."""
    return {MASKED: "torch, before the cut", "torch": "torch, compact"}.get(hop, hop)


def unmeasured(report: Report) -> list[str]:
    """`tensorrt_rtx.fp32.SM86, tensorrt_rtx.fp16.SM86: no GPU`, a line per reason."""
    forms: dict[str, dict[str, None]] = {}
    for model in (report.models.dense, report.models.compact):
        for name, reason in model.reasons.items():
            if name.startswith("accuracy."):
                forms.setdefault(reason, {})[name.removeprefix("accuracy.")] = None
    return [f"{', '.join(names)}: {reason}" for reason, names in forms.items()]
