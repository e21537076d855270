"""What the check measured with each engine, put into a copy of the engine's manifest: `70-check/engines/<engine>.json`.

The manifest beside the engine is part of a finished stage and stays as it is; the copy takes its place where the engine
is handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from export.engines import manifest
from pipeline.check.forms import engine_name
from pipeline.check.results import CheckDocument, Latencies
from pipeline.results import EngineResult

FOLDER = "engines"


def write_measured(document: CheckDocument, engines: Sequence[EngineResult], out: Path) -> list[Path]:
    """One manifest for each engine that ran here; [] where none did."""
    written = []
    for result, entry in zip(engines, document.engines, strict=True):
        if result.engine is None or entry.measured_on is None:
            continue
        measured = manifest.Measured(
            device=entry.measured_on,
            accuracy=getattr(document.models, result.model).accuracy.get(engine_name(result)),
            latency=list(_latency(document.latency, result)),
        )
        changed = manifest.verify(result.engine.path).model_copy(update={"measured": measured})
        copy = out / FOLDER / result.engine.path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        written.append(manifest.write(copy, changed))
    return written


def _latency(latencies: Latencies, result: EngineResult) -> Iterator[manifest.Latency]:
    """Those taken with this very file: of engines for several targets only one is timed."""
    assert result.engine is not None
    for key, entry in latencies.get(result.engine.flavour, {}).get(result.precision, {}).items():
        timing = getattr(entry, result.model)
        if timing is not None and timing.name == result.engine.path.name:
            batch = int(key.removeprefix("b"))
            yield manifest.Latency(batch=batch, p50_ms=timing.p50_ms, p95_ms=timing.p95_ms, n=timing.n)


def measured_manifests(checked: Path, engines: Sequence[EngineResult]) -> dict[Path, Path]:
    """Engine -> the name beside which its manifest with figures lies in the folder of the check, as
    `manifest.read` takes it; none where the check did not run it. UserError where such a manifest was changed.
    """
    copies: dict[Path, Path] = {}
    for result in engines:
        if result.engine is not None:
            copy = checked / FOLDER / result.engine.path.name
            if manifest.manifest_path(copy).is_file() and manifest.read(copy).sha256 == result.engine.sha256:
                copies[result.engine.path] = copy
    return copies
