"""`demport report --card`: a README for the exported model, written into the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from pipeline.config.file import load_config
from pipeline.report import glance
from pipeline.report.accuracy import paired
from pipeline.report.collect import CHECK, ENGINE, PRECISION, SIMPLIFY, Run, collect
from pipeline.report.document import Report
from pipeline.report.networks import certified
from pipeline.report.page import Cell, environment, numbers
from pipeline.surgery.plan import CERTIFICATE, PLAN, read_plan
from pipeline.workspace.folder import CONFIG
from runtime.documents import Kind
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES, sha256, write_text

CARD = "README.md"
DEPLOYED = f"{SIMPLIFY}/compact.onnx"

CERTIFICATES = Kind("a certificate as surgery writes it", "save the compact network again", MAX_JSON_BYTES)

KINDS = {
    "classification": ("image classifier", "image-classification"),
    "segmentation": ("segmentation network", "image-segmentation"),
    "detection": ("detector", "object-detection"),
}
"""Task -> what a network of it is called, and the tag that model hubs have for it."""


class _Part(BaseModel):
    """What a card takes of a certificate; the rest is not looked at."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Channels(_Part):
    before: NonNegativeInt
    after: NonNegativeInt


class _Law(_Part):
    max_rel_diff: NonNegativeFloat
    tolerance: NonNegativeFloat
    held: bool


class _Certificate(_Part):
    channels: _Channels | None = None
    law: _Law | None = None


def write_card(run: Path) -> Path:
    """`run`/README.md from what the run left. UserError where it has no exported model."""
    collected, config = collect(run), load_config(run / CONFIG)
    report = collected.report
    check = next(stage for stage in report.stages if stage.folder == CHECK)
    kind, tag = KINDS.get(config.task.name, ("network", "other"))
    content = {
        "report": report,
        "kind": kind,
        "tag": tag,
        "config": config,
        **_graph(run / DEPLOYED),
        "conclusion": glance.conclusion(collected),
        "certificate": certified(report),
        "comparisons": [list(_cells(row)) for row in glance.comparisons(collected)],
        "difference": paired(report),
        "images": numbers.count(report.accuracy_difference.n) if report.accuracy_difference else numbers.NOT_MEASURED,
        "device": f"{report.environment.get('cpu')}, {report.environment.get('cores')} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in report.environment.get("versions", {}).items()),
        "limits": list(limits(collected)),
        "files": [
            {
                "path": path.relative_to(run).as_posix(),
                "size": numbers.binary(path.stat().st_size),
                "sha256": sha256(path),
            }
            for path in _files(run)
        ],
        "onnx": DEPLOYED,
        "command": check.command or f"demport run {CONFIG}",
    }
    write_text(run / CARD, environment().get_template("card.md.j2").render(content))
    return run / CARD


def hub_card(folder: Path, run: Path | None, address: str) -> str:
    """The card of a compact network alone, from plan and certificate in `folder`, and from the run's report if there is
    one. UserError where they cannot be read."""
    plan = read_plan(folder / PLAN)
    path = folder / CERTIFICATE
    certificate = CERTIFICATES.document(path, _Certificate) if path.is_file() else _Certificate()
    collected = collect(run) if run is not None else None
    rows = [list(_cells(row)) for row in glance.comparisons(collected)] if collected else []
    content = {
        "plan": plan,
        "address": address,
        "sizes": [size for one in plan.inputs if (size := getattr(one, "shape", ())[1:])],
        "channels": certificate.channels,
        "law": certificate.law,
        "comparisons": rows,
        "limits": list(limits(collected)) if collected and rows else [],
        "status": collected.report.verdict.status if collected and collected.report.verdict.gates else None,
    }
    return environment().get_template("hub.md.j2").render(content)


def limits(run: Run) -> Iterator[str]:
    """What a reader must not take for granted."""
    report = run.report
    for gate in report.verdict.gates:
        if gate.status != "pass":
            yield f"Gate {gate.name}: {gate.status}; {gate.reason}"
    if not report.verdict.gates:
        yield f"Nothing was judged: stage {CHECK} has not run."
    if not report.environment.get("gpus"):
        yield "Not measured on a GPU."
    elif not any(engine.measured_on for engine in report.engines):
        yield "No engine was measured."
    for doubt in glance.doubts(run):
        yield f"The latencies are doubtful: {doubt} while they were measured."
    if report.accuracy_difference:
        (low, high), metric = report.accuracy_difference.ci95_pp, report.metric_name
        yield (
            f"{report.accuracy_difference.n:,} test images bound the change of {metric} no closer than {low:+.2f} to "
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


def _cells(row: list[Cell | str]) -> Iterator[str]:
    """Text, and in brackets what stands under it."""
    for cell in row:
        yield cell if isinstance(cell, str) else cell.text + (f" ({cell.more})" if cell.more else "")


def _machine(report: Report) -> str:
    return f"{report.environment.get('cpu')}, fingerprint {report.environment.get('fingerprint')}"


def _graph(path: Path) -> dict[str, Any]:
    """What the deployed file says of itself."""
    import onnx

    if not path.is_file():
        raise UserError(f"{path} is not there", "a run with an exported model", "run `demport run` to 50-simplify")
    try:
        model = onnx.load(path, load_external_data=False)
        notes = {one.key: one.value for one in model.metadata_props}
        constants = {weight.name for weight in model.graph.initializer}
        fed = next(value for value in model.graph.input if value.name not in constants)
        return {
            "names": json.loads(notes["demport.classes"]),
            "mean": json.loads(notes["demport.mean"]),
            "std": json.loads(notes["demport.std"]),
            "scale": json.loads(notes["demport.scale"]),
            "shape": [axis.dim_value for axis in fed.type.tensor_type.shape.dim[1:]],
            "input": fed.name,
            "output": model.graph.output[0].name,
        }
    except Exception as error:  # protobuf's own exception types are many
        raise UserError(
            f"{path}: {type(error).__name__}: {error}", "an ONNX file that demport exported", "export it again"
        ) from error


def _files(run: Path) -> list[Path]:
    """What somebody may deploy: the compact graphs and engines."""
    graphs = sorted((run / PRECISION).glob("compact.*.onnx"))
    return [run / DEPLOYED, *graphs, *sorted((run / ENGINE).glob("compact.*.engine"))]
