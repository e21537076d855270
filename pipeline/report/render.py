"""Writes report.json, report.md and report.html of a run; the two pages show figures of the JSON and nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from export.files import write_json
from pipeline.files import write_text
from runtime.errors import UserError

from . import accuracy_view, numbers, pictures, speed_view, training_view, view
from .collect import DEMP, DENSE, ENGINE, collect
from .engine_schema import proven
from .glance import glance
from .schema import EngineFile, Hop, Report, WorstImage
from .speed_schema import Speedup
from .surgery_schema import Candidate

HERE = Path(__file__).parent
MARKDOWN = str.maketrans(
    {**{mark: f"\\{mark}" for mark in "\\`*_[]|#~"}, "<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " "}
)


@dataclass(frozen=True)
class Rendered:
    """The three files of a report, and what they say."""

    json: Path
    markdown: Path
    html: Path
    report: Report


def render(run: Path) -> Rendered:
    """Read the stage folders of `run` and write report.{json,md,html}, each at once; UserError as `collect`."""
    source = collect(run)
    content = context(source)
    pages = environment()
    write_json(run / "report.json", source.report.model_dump(mode="json", by_alias=True))
    write_text(run / "report.md", pages.get_template("report.md.j2").render(content))
    write_text(run / "report.html", pages.get_template("report.html.j2").render(content))
    return Rendered(run / "report.json", run / "report.md", run / "report.html", source.report)


def environment() -> jinja2.Environment:
    """Templates beside this file; HTML is escaped, Markdown text goes through `md`, an unknown name is an error."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for form in (numbers.percent, numbers.points, numbers.count, numbers.binary, numbers.milliseconds, numbers.seconds,
                 numbers.small, numbers.plain, numbers.short, numbers.significant):  # fmt: skip
        pages.filters[form.__name__] = form
    pages.filters |= {
        "form": accuracy_view.label,
        "interval": interval,
        "measured": measured,
        "proven": proven,
        "rounds": rounds,
        "change": change,
        "sessions": sessions,
        "not_worse": not_worse,
    }
    pages.filters["md"] = lambda text: str(text).translate(MARKDOWN)
    return pages


def context(source: view.Source) -> dict[str, Any]:
    """What the templates name."""
    report = source.report
    return {
        "report": report,
        "css": Markup((HERE / "report.css").read_text("utf-8")),
        "glance": glance(source),
        "deciding": [gate.name for gate in report.verdict.gates if gate.status == report.verdict.status != "pass"],
        "explanations": speed_view.explanations(source),
        "profiles": [(why, speed_view.parts(why), speed_view.roofline(why)) for why in report.why],
        "layers_pictures": [pictures.layers_picture(why) for why in report.why],
        "broken": accuracy_view.first_broken(report),
        "quantiles": speed_view.quantiles(source),
        "method": speed_view.method(source),
        "swept": speed_view.swept(source),
        "headline": view.headline_latency(source),
        "streams": speed_view.streams(report),
        "loaded": speed_view.loaded(report),
        "loaded_missing": speed_view.unmeasured_loads(report),
        "worst": worst(source),
        "comparisons": view.comparisons(source),
        "difference": view.difference(report),
        "shares": shares(source),
        "latency": [row for row in view.latency_rows(report) if row.figures.speedup],
        "latency_missing": view.unmeasured_latencies(report),
        "form_heads": accuracy_view.columns(report),
        "forms": accuracy_view.forms(report),
        "unmeasured": accuracy_view.unmeasured(report),
        "class_heads": accuracy_view.class_heads(report),
        "classes": accuracy_view.classes(report),
        "engines_alike": view.engines_alike(report),
        "images": report.accuracy_difference.n if report.accuracy_difference else None,
        "widest": max((layer.before for layer in report.surgery.layers), default=1),
        "histories": histories(source),
        "demp": source.demp,
        "moments": training_view.moments(source.demp),
        "layer_rows": training_view.layer_rows(source.demp),
        "checked": bool(report.verdict.gates),
        "engines_done": any(stage.folder == ENGINE and stage.status == "done" for stage in report.stages),
        "certificate": view.certificate(report),
        "alignment": tried(report),
        "environment": list(_rows(report.environment)),
        "training_picture": training_view.accuracy_picture(source.dense, source.demp),
        "course_picture": training_view.course_picture(source.dense, source.demp),
        "deaths_picture": training_view.layers_picture(source.demp),
        "accuracy_picture": pictures.accuracy_picture(report),
        "speedup_picture": pictures.speedup_picture(report),
        "share_picture": pictures.share_picture(source),
        "distribution_picture": pictures.distribution_picture(source),
        "sweep_picture": pictures.sweep_picture(source),
    }


def histories(source: view.Source) -> list[dict[str, Any]]:
    """The trainings that ran, with what their tables need."""
    return [
        {
            "label": label,
            "file": f"{folder}/history.jsonl",
            "epochs": epochs,
        }
        for label, folder, epochs in (("Dense", DENSE, source.dense), ("DemP", DEMP, source.demp))
        if epochs
    ]


def shares(source: view.Source) -> list[tuple[str, str, str]]:
    """(figure, compact in percent of dense, its interval) of the plot of shares."""
    return [
        (
            span.row,
            numbers.percent(span.value / 100, 1),
            "" if span.low is None or span.high is None else numbers.between(span.low, span.high, 1),
        )
        for span in pictures.shares(source)
    ]


def worst(source: view.Source) -> list[tuple[WorstImage, str]]:
    """The images that were kept, each with its PNG as a data address; UserError where a file is missing."""
    kept = source.report.worst.images if source.report.worst else []
    return [(image, _data_address(source.folder / image.file)) for image in kept]


def _data_address(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "an image of the check", "run `demport check` again") from error
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def change(hop: Hop) -> str:
    """`-0.25 pp (-1.59 to 0.95)`."""
    edges = f" {numbers.between(*hop.paired.ci95_pp)}" if hop.paired else ""
    return numbers.points(hop.accuracy_delta) + edges


def not_worse(hop: Hop) -> str:
    """`yes, p = 0.62`: whether the interval stays within the limit, and McNemar's p."""
    return f"{hop.non_inferior}, p = {numbers.small(hop.paired.p_value)}" if hop.paired else ""


def interval(speedup: Speedup) -> str:
    """`1.98x (1.95 to 2.01)`."""
    return f"{numbers.ratio(speedup.ratio)} {numbers.between(*speedup.ci95)}"


def sessions(count: int) -> str:
    """`2 sessions`."""
    return f"{count} session{'s' if count > 1 else ''}"


def rounds(row: Candidate) -> str:
    """`0.92 ms (0.90 to 0.95)`."""
    low, high = row.p50_ms_low, row.p50_ms_high
    return numbers.milliseconds(row.p50_ms) + (
        f" {numbers.between(low, high)}" if low is not None and high is not None else ""
    )


def tried(report: Report) -> list[Candidate]:
    """The alignments that were timed; [] where none was."""
    alignment = report.surgery.alignment
    return alignment.candidates if alignment is not None and alignment.backend is not None else []


def measured(engine: EngineFile) -> str:
    """Where an engine was measured, or why it was not, or why there is none."""
    return engine.measured_on or f"{'not measured' if engine.path else 'not built'}: {engine.reason}"


def _rows(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Figures of a machine as rows; what is nested or a list is joined."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            text = ", ".join(f"{name} {one}" for name, one in inner.items())
        else:
            text = ", ".join(map(str, inner)) if isinstance(inner, (list, tuple)) else str(inner)
        yield key.replace("_", " "), text or "none"
