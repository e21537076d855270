"""What the check measured with each engine, put into a copy of the engine's manifest: `70-check/engines/<engine>.json`.

The manifest beside the engine is part of a finished stage and stays as it is; the copy takes its place where the engine
is handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from export import manifest
from pipeline.exporting import EngineResult
from pipeline.measuring import engine_name

FOLDER = "engines"


def write_measured(document: Mapping[str, Any], engines: Sequence[EngineResult], out: Path) -> list[Path]:
    """One manifest for each engine that ran here, from check.json's `document`; [] where none did."""
    written = []
    for result, entry in zip(engines, document["engines"], strict=True):
        if result.engine is None or entry["measured_on"] is None:
            continue
        measured = manifest.Measured(
            device=entry["measured_on"],
            accuracy=document["models"][result.model]["accuracy"].get(engine_name(result)),
            latency=list(_latency(document["latency"], result)),
        )
        told = manifest.verify(result.engine.path).model_copy(update={"measured": measured})
        copy = out / FOLDER / result.engine.path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        written.append(manifest.write(copy, told))
    return written


def _latency(latencies: Mapping[str, Any], result: EngineResult) -> Iterator[manifest.Latency]:
    """Those taken with this very file: of engines for several targets only one is timed."""
    assert result.engine is not None
    for key, entry in latencies.get(result.engine.flavour, {}).get(result.precision, {}).items():
        row = entry.get(result.model)
        if row and row.get("name") == result.engine.path.name and row.get("p50_ms"):
            yield manifest.Latency(
                batch=int(key.removeprefix("b")), p50_ms=row["p50_ms"], p95_ms=row["p95_ms"], n=row["n"]
            )


def measured_manifests(checked: Path, engines: Sequence[EngineResult]) -> dict[Path, Path]:
    """Engine -> the name beside which its manifest with figures lies in the folder of the check, as
    `export.manifest.read` takes it; none where the check did not run it. UserError where such a manifest was changed.
    """
    copies: dict[Path, Path] = {}
    for result in engines:
        if result.engine is not None:
            copy = checked / FOLDER / result.engine.path.name
            if manifest.manifest_path(copy).is_file() and manifest.read(copy).sha256 == result.engine.sha256:
                copies[result.engine.path] = copy
    return copies
