"""Figures of check.json in a copy of the engine's manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.engines import Engine, manifest
from pipeline.check.measured_engines import measured_manifests, write_measured
from pipeline.check.reading import typed
from pipeline.check.results import CheckDocument
from pipeline.results import EngineResult
from runtime.errors import UserError
from tests.export.small_engines import stand_in
from tests.pipeline.report.check_document import check, latency


def result(folder: Path, name: str = "dense.fp16.SM86.engine") -> EngineResult:
    path = stand_in(folder / name)
    told = manifest.read(path)
    beside = manifest.manifest_path(path), path.with_name(name + ".log")
    engine = Engine(path, *beside, "tensorrt", told.version, "fp16", "SM86", told.sha256, told.bytes, 1.0, {}, {}, ())
    return EngineResult("dense", "fp16", "SM86", engine, None)


def document(device: str | None, name: str) -> CheckDocument:
    """check.json of one engine that ran at batch 1; at batch 8 it was too slow."""
    figures = check()
    figures["engines"] = [figures["engines"][0] | {"measured_on": device}]
    figures["models"]["dense"]["accuracy"]["tensorrt.fp16.SM86"] = 0.75
    entry, unmeasured = latency(0.5, 0.4, 1.25), figures["latency"]["tensorrt_rtx"]["fp16"]["b32"]
    entry["dense"] |= {"name": name, "p95_ms": 0.75, "n": 30}
    figures["latency"] = {"tensorrt": {"fp16": {"b1": entry, "b8": unmeasured}}}
    return typed(CheckDocument, figures, Path("check.json"))


def test_figures_go_into_a_sealed_copy(tmp_path: Path) -> None:
    made = result(tmp_path)
    (path,) = write_measured(document("NVIDIA L4", "dense.fp16.SM86.engine"), [made], tmp_path / "check")
    assert path == tmp_path / "check" / "engines" / "dense.fp16.SM86.engine.json"
    told = manifest.read(path.with_name("dense.fp16.SM86.engine")).measured
    assert told is not None
    assert (told.device, told.accuracy) == ("NVIDIA L4", 0.75)
    assert [(row.batch, row.p50_ms, row.p95_ms, row.n) for row in told.latency] == [(1, 0.5, 0.75, 30)]
    assert made.engine is not None and manifest.verify(made.engine.path).measured is None


def test_the_latency_of_another_file_is_not_taken(tmp_path: Path) -> None:
    (path,) = write_measured(document("NVIDIA L4", "dense.fp16.SM89.engine"), [result(tmp_path)], tmp_path / "check")
    told = manifest.read(path.with_name("dense.fp16.SM86.engine")).measured
    assert told is not None
    assert told.latency == []


def test_engines_that_did_not_run_have_none(tmp_path: Path) -> None:
    made = result(tmp_path)
    assert write_measured(document(None, "x"), [made], tmp_path / "check") == []
    missing = EngineResult("dense", "fp16", "SM86", None, "no TensorRT")
    assert write_measured(document("NVIDIA L4", "x"), [missing], tmp_path / "check") == []
    assert not (tmp_path / "check").exists()
    assert made.engine is not None
    made.engine.path.write_bytes(b"another")
    with pytest.raises(UserError, match="bytes long"):
        write_measured(document("NVIDIA L4", "x"), [made], tmp_path / "check")


def test_the_manifests_with_figures_are_found_by_the_engine_they_are_of(tmp_path: Path) -> None:
    made, missing = result(tmp_path), EngineResult("dense", "fp16", "SM86", None, "no TensorRT")
    assert measured_manifests(tmp_path / "check", [made, missing]) == {}
    (path,) = write_measured(document("NVIDIA L4", "dense.fp16.SM86.engine"), [made], tmp_path / "check")
    assert made.engine is not None
    copy = tmp_path / "check" / "engines" / "dense.fp16.SM86.engine"
    assert measured_manifests(tmp_path / "check", [made, missing]) == {made.engine.path: copy}
    other = replace(made, engine=replace(made.engine, sha256="0" * 64))  # built again since the check
    assert measured_manifests(tmp_path / "check", [other]) == {}
    path.write_text(path.read_text().replace("0.75", "0.95"))
    with pytest.raises(UserError, match="was changed after it was written"):
        measured_manifests(tmp_path / "check", [made])
