"""`demport report --card`: a README for the exported model, written into the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.files import sha256
from pipeline.config_file import load_config
from pipeline.files import write_text
from pipeline.workspace import CONFIG
from runtime.errors import UserError

from . import numbers, speed_view, view
from .collect import ENGINE, collect
from .render import environment
from .schema import Report

CARD = "README.md"
DEPLOYED = "50-simplify/compact.onnx"


def write_card(run: Path) -> Path:
    """`run`/README.md from what the run left. UserError where it has no exported model."""
    source, config = collect(run), load_config(run / CONFIG)
    told = _graph(run / DEPLOYED)
    report = source.report
    check = next(stage for stage in report.stages if stage.folder == "70-check")
    content = {
        "report": report,
        "config": config,
        **told,
        "summary": view.summary(source),
        "certificate": view.certificate(report),
        "comparisons": view.comparisons(source),
        "difference": view.difference(report),
        "images": report.accuracy_difference.n if report.accuracy_difference else None,
        "device": f"{report.environment.get('cpu')}, {report.environment.get('cores')} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in report.environment.get("versions", {}).items()),
        "limits": list(limits(source)),
        "files": [
            {"path": path.relative_to(run).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in _files(run)
        ],
        "onnx": DEPLOYED,
        "command": check.command or f"demport run {CONFIG}",
    }
    write_text(run / CARD, environment().get_template("card.md.j2").render(content))
    return run / CARD


def limits(source: view.Source) -> Iterator[str]:
    """What a reader must not take for granted."""
    report = source.report
    for gate in report.verdict.gates:
        if gate.status != "pass":
            yield f"Gate {gate.name}: {gate.status}; {gate.reason}"
    if not report.verdict.gates:
        yield "Nothing was judged: stage 70-check has not run."
    if not report.environment.get("gpus"):
        yield "Not measured on a GPU."
    elif not any(engine.measured_on for engine in report.engines):
        yield "No engine was measured."
    for doubt in speed_view.doubts(source):
        yield f"The latencies are doubtful: {doubt} while they were measured."
    if report.accuracy_difference:
        low, high = report.accuracy_difference.ci95_pp
        yield (
            f"{report.accuracy_difference.n:,} test images tell the change of accuracy no closer than {low:+.2f} to "
            f"{high:+.2f} percentage points."
        )
    lost = [one for one in report.classes if one.compact < one.dense][:3]
    if lost:
        named = ", ".join(
            f"{one.name} ({numbers.percent(one.dense)} to {numbers.percent(one.compact)} of {one.n})" for one in lost
        )
        yield f"Classes that lost most: {named}."
    yield f"Latencies hold on one kind of machine ({_machine(report)}); other devices may turn the ratio."
    yield "The network knows its classes only: an image of anything else is given one of them."


def _machine(report: Report) -> str:
    return f"{report.environment.get('cpu')}, fingerprint {report.environment.get('fingerprint')}"


def _graph(path: Path) -> dict[str, Any]:
    """What the deployed file says of itself."""
    import onnx

    if not path.is_file():
        raise UserError(f"{path} is not there", "a run with an exported model", "run `demport run` to 50-simplify")
    try:
        model = onnx.load(path, load_external_data=False)
        told = {one.key: one.value for one in model.metadata_props}
        constants = {weight.name for weight in model.graph.initializer}
        given = next(value for value in model.graph.input if value.name not in constants)
        return {
            "names": json.loads(told["demport.classes"]),
            "mean": json.loads(told["demport.mean"]),
            "std": json.loads(told["demport.std"]),
            "scale": json.loads(told["demport.scale"]),
            "shape": [axis.dim_value for axis in given.type.tensor_type.shape.dim[1:]],
            "input": given.name,
            "output": model.graph.output[0].name,
        }
    except Exception as error:  # protobuf's own exception types are many
        raise UserError(
            f"{path}: {type(error).__name__}: {error}", "an ONNX file that demport exported", "export it again"
        ) from error


def _files(run: Path) -> list[Path]:
    """What somebody may deploy: the compact graphs and engines."""
    graphs = sorted((run / "55-precision").glob("compact.*.onnx"))
    return [run / DEPLOYED, *graphs, *sorted((run / ENGINE).glob("compact.*.engine"))]
