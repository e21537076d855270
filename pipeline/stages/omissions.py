"""What a run holds and `demport publish` leaves out, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from export.serving.files import Model
from export.serving.recorded import RESPONSE
from export.serving.triton_ensemble import CLASSIFY
from pipeline.results import CastGraphs, EngineResult, Engines, Format, Omission, Served

BUNDLE = "a bundle holds ONNX files, which the server compiles; --format triton takes engines of tensorrt"
RTX = "Triton's TensorRT backend loads engines of tensorrt, not of tensorrt_rtx; --allow-rtx takes them along"
OPENVINO = "Triton loads no OpenVINO IR; --format bundle has the settings for OpenVINO Model Server"
ALONE = "the other network of the pair has no such engine"
PIXELS = "they are for programs without a server; models here take normalised images, MODEL_classify takes pixels"
COMPLETED = "the last step of the task is left to the client; take the file itself from the run"
SILENT = "ONNX Runtime does not run the graph on this machine, so its recorded requests have no answers"
UNLIKE = "the model takes no images of the data set, or answers with no class"


def omissions(
    format: Format, allow_rtx: bool, engines: Engines, lower: CastGraphs, models: Sequence[Model]
) -> Iterator[tuple[str, str]]:
    """(what, why) of engines and graphs that are in no model."""
    published = {path for model in models for path in model.versions.values()}
    for entry in engines.engines:
        if entry.engine is None or entry.engine.path not in published:
            yield _name(entry), _why(format, allow_rtx, entry)
    yield from ((graph.path.name, PIXELS) for graph in lower.served.values())
    yield from ((path.name, COMPLETED) for path in lower.completed.values())


def without_answers(directory: Path, served: Iterable[Served], classify: bool) -> Iterator[tuple[str, str]]:
    """(what, why) of recorded answers and of ensembles that a published folder lacks."""
    names = {model.name for model in served}
    for model in served:
        networks = model.platform != "ensemble" and (directory / model.name / "labels.txt").is_file()
        if networks and not (directory / model.name / RESPONSE).is_file():
            yield f"answers of {model.name}", SILENT
        if networks and classify and f"{model.name}_{CLASSIFY}" not in names:
            yield f"{model.name}_{CLASSIFY}", UNLIKE


def by_reason(pairs: Iterable[tuple[str, str]]) -> tuple[Omission, ...]:
    reasons: dict[str, list[str]] = {}
    for what, why in pairs:
        reasons.setdefault(why, []).append(what)
    return tuple(Omission(why, tuple(what)) for why, what in reasons.items())


def _name(entry: EngineResult) -> str:
    return f"engine {entry.model}.{entry.precision}.{entry.target}"


def _why(format: Format, allow_rtx: bool, entry: EngineResult) -> str:
    if entry.engine is None:
        return f"not built: {entry.reason}"
    if entry.engine.flavour == "openvino":
        return OPENVINO if format == "triton" else BUNDLE
    if format == "bundle":
        return BUNDLE
    return RTX if entry.engine.flavour == "tensorrt_rtx" and not allow_rtx else ALONE
