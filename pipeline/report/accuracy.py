"""Section on the metric: every form of both networks, what each hop changed, classes, and the images that got lost."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial

from pipeline.check.results import ClassAccuracy, Hop, Role
from pipeline.report.collect import CHECK, Run
from pipeline.report.document import ModelFigures, Report
from pipeline.report.page import Block, Cell, Heading, Photo, Photos, Picture, Plots, Section, Table, Text, numbers
from pipeline.report.page.plots import NETWORKS, Span, intervals

MASKED = "masked"


def section(run: Run) -> Section:
    rows, title = forms(run.report), f"{numbers.capital(run.report.metric_name)} at every hop"
    if not rows:
        return Section(title, [Text(f"Not run: stage {CHECK}.", "absent")])
    return Section(title, list(_blocks(run, rows)), brief=True)


def _blocks(run: Run, rows: list[list[str]]) -> Iterator[Block]:
    report = run.report
    count = f", {report.accuracy_difference.n:,} images" if report.accuracy_difference else ""
    kind = "by a bootstrap over images" if report.models.dense.intervals else "Wilson's"
    yield Text(f"{CHECK}/check.json; whole test split{count}. Intervals are {kind}, 95 %.", "source")
    if broken := first_broken(report):
        yield Text(broken, "remark")
    if difference := paired(report):
        yield Text(difference)
    yield Plots([accuracy_picture(report)])
    heads = ("Network as", *columns(report))
    yield Table(heads, rows, range(1, len(heads)))
    for line in unmeasured(report):
        yield Text(f"Not measured: {line}", "absent")
    if report.hops:
        test = "the same bootstrap" if report.models.dense.intervals else "the exact McNemar test on the same images"
        within = f"Not worse: whether the 95 % interval of the change stays within max_{report.metric_name}_drop"
        yield Text(f"{within}; p of {test}.", "source")
        metric = numbers.capital(report.metric_name)
        hop_heads = ("Hop", "Largest difference", "Top-1 agreement", metric, "Not worse", "Not measured because")
        yield Table(hop_heads, [_hop(hop) for hop in report.hops], (1, 2, 3), "What each hop changed")
    if report.classes:
        recall = "Recall, " if any(model.macro_f1 for model in (report.models.dense, report.models.compact)) else ""
        whose = (f"{recall}dense", f"{recall}compact", f"{recall}compact at its lowest")
        class_heads = ("Class", "Images", *map(numbers.capital, whose))
        summary = "Class by class, through torch, the one that lost most first"
        yield Table(class_heads, [_class(one) for one in report.classes], (1, 2, 3, 4), summary)
    if report.worst:
        before, after = label(report.worst.source), label(report.worst.target)
        classified = not report.models.dense.intervals
        yield Heading(f"Right in {before}, wrong in {after}" if classified else f"Better in {before} than in {after}")
        if report.worst.drawn:
            yield Text(f"Side by side: {report.worst.drawn}.", "source")
        yield Photos(photos(run), bool(report.worst.drawn)) if report.worst.images else Text("No image.")


def columns(report: Report) -> list[str]:
    """Top-1 of both networks, and top-5 and the user's metric where there are any."""
    models = (report.models.dense, report.models.compact)
    heads = ["Dense", "Compact"]
    if any(model.top5 for model in models):
        heads += ["Top-5, dense", "Top-5, compact"]
    if any(model.macro_f1 for model in models):
        heads += ["Macro F1, dense", "Macro F1, compact"]
    heads += [f"{name}, {role}" for name in _beside(report) for role in ("dense", "compact")]
    if any(model.metric for model in models):
        heads += ["Metric, dense", "Metric, compact"]
    return heads


def forms(report: Report) -> list[list[str]]:
    """A row of each form in which one of the two networks was measured: its name, and the figures of `columns`."""
    models = (report.models.dense, report.models.compact)
    figures: list[Callable[[ModelFigures, str], str]] = [
        lambda model, form: with_interval(report, model, form),
    ]
    if any(model.top5 for model in models):
        figures.append(lambda model, form: numbers.percent(model.top5.get(form)))
    if any(model.macro_f1 for model in models):
        figures.append(lambda model, form: numbers.percent(model.macro_f1.get(form)))
    figures += [partial(_beside_at, name) for name in _beside(report)]
    if any(model.metric for model in models):
        figures.append(lambda model, form: numbers.plain(model.metric.get(form)))
    names = dict.fromkeys(name for model in reversed(models) for name in model.accuracy)
    return [
        [label(name) if name == MASKED else name]
        + ["-" if name == MASKED and not at else figure(models[at], name) for figure in figures for at in (0, 1)]
        for name in names
        if any(model.accuracy.get(name) is not None for model in models)
    ]


def _beside(report: Report) -> list[str]:
    """Names of the task's other metrics."""
    return list(dict.fromkeys([*report.models.dense.beside, *report.models.compact.beside]))


def _beside_at(name: str, model: ModelFigures, form: str) -> str:
    return numbers.percent(model.beside.get(name, {}).get(form))


def _hop(hop: Hop) -> list[Cell | str]:
    """`-0.25 pp (-1.59 to 0.95)` and `yes, p = 0.62`."""
    change = numbers.points(hop.accuracy_delta) + (f" {numbers.between(*hop.paired.ci95_pp)}" if hop.paired else "")
    worse = f"{hop.non_inferior}, p = {numbers.small(hop.paired.p_value)}" if hop.paired else ""
    name = f"{hop.model}: {hop.source} to {hop.target}"
    figures = [numbers.small(hop.max_abs), numbers.percent(hop.top1_agreement), change, worse]
    return [name, *figures, Cell(hop.reason or "", kind="wide")]


def _class(one: ClassAccuracy) -> list[str]:
    return [one.name, numbers.count(one.n), numbers.percent(one.dense), numbers.percent(one.compact), _lowest(one)]


def _lowest(one: ClassAccuracy) -> str:
    """`95.00 %, fp16`; the first of equals, as the line goes."""
    if not one.forms:
        return ""
    form = min(one.forms, key=lambda name: one.forms[name])
    return f"{numbers.percent(one.forms[form])}, {form}" if one.forms[form] < one.compact else "as in torch"


def photos(run: Run) -> list[Photo]:
    assert run.report.worst
    return [
        Photo(
            "data:image/png;base64," + base64.b64encode(run.images[image.file]).decode("ascii"),
            f"{image.label} taken for {image.after}" if image.label else f"{image.before} to {image.after}",
            f"{numbers.percent(image.p_before, 0)} to {numbers.percent(image.p_after, 0)}; image {image.index}"
            if image.label
            else f"image {image.index}",
            f"Test image {image.index}" + (f", a {image.label}" if image.label else ""),
        )
        for image in run.report.worst.images
    ]


def first_broken(report: Report) -> str | None:
    """Which hop broke the budget first; None where none did."""
    broken = report.broken
    if broken is None:
        return None
    return (
        f"The budget was broken first from {label(broken.source)} to {label(broken.target)}: {broken.drop_pp:.2f} "
        f"percentage points lost against dense, at most {broken.limit_pp:g} allowed."
    )


def paired(report: Report) -> str | None:
    """The paired comparison of the metric in a sentence; None where it was not made."""
    difference = report.accuracy_difference
    if difference is None:
        return None
    method = f"{difference.method[:1].upper()}{difference.method[1:]}"
    where = (
        ("better in compact", "better in") if report.models.dense.intervals else ("right only in compact", "only in")
    )
    return (
        f"Through torch {difference.only_second} images are {where[0]}, {difference.only_first} {where[1]} "
        f"dense: p = {numbers.small(difference.p_value)}. {method}."
    )


def label(form: str) -> str:
    """A form of the network as people read it."""
    return {MASKED: "torch, before the cut", "torch": "torch, compact"}.get(form, form)


def unmeasured(report: Report) -> list[str]:
    """`tensorrt_rtx.fp32.SM86, tensorrt_rtx.fp16.SM86: no GPU`, a line per reason."""
    names: dict[str, dict[str, None]] = {}
    for model in (report.models.dense, report.models.compact):
        for name, reason in model.reasons.items():
            if name.startswith("accuracy."):
                names.setdefault(reason, {})[name.removeprefix("accuracy.")] = None
    return [f"{', '.join(group)}: {reason}" for reason, group in names.items()]


def accuracy_picture(report: Report) -> Picture | None:
    """The metric at every hop, with its 95 % interval."""
    models: tuple[tuple[Role, ModelFigures], ...] = (("dense", report.models.dense), ("compact", report.models.compact))
    spans = [
        Span("before the cut" if form == MASKED else form, role, 100 * value, *_percent(interval(report, model, form)))
        for role, model in models
        for form, value in model.accuracy.items()
        if value is not None
    ]
    spans.sort(key=lambda span: span.row != "before the cut")
    metric = report.metric_name
    alt = f"Test {metric} of the dense and the compact network at every hop, with 95 % intervals."
    return (
        intervals(f"Test {metric} by form", spans, axis=f"test {metric}, %", alt=alt, key=NETWORKS) if spans else None
    )


def wilson(report: Report, accuracy: float) -> tuple[float, float] | None:
    """95 % Wilson interval of a test accuracy, as fractions; None where the number of images is unknown."""
    from scipy.stats import binomtest

    if report.accuracy_difference is None:
        return None
    images = report.accuracy_difference.n
    interval = binomtest(round(accuracy * images), images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def interval(report: Report, model: ModelFigures, form: str) -> tuple[float, float] | None:
    """95 % interval of the metric of a form: as the check left it, else Wilson's."""
    value = model.accuracy.get(form)
    return None if value is None else model.intervals.get(form) or wilson(report, value)


def with_interval(report: Report, model: ModelFigures, form: str) -> str:
    """`98.99 % (97.4 to 99.6)`."""
    edges, figure = interval(report, model, form), numbers.percent(model.accuracy.get(form))
    return figure + (f" {numbers.between(100 * edges[0], 100 * edges[1], 1)}" if edges else "")


def _percent(edges: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if edges is None else (100 * edges[0], 100 * edges[1])
