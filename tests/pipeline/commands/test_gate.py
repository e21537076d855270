"""`demport gate` on a finished run: both networks are measured again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline import cli
from pipeline.commands.gate import Request, gate, subject_of
from pipeline.workspace import record as stage_record
from runtime.documents import seal_of
from runtime.errors import UserError
from runtime.files import sha256_of_json
from runtime.gate.baseline import NAME, read_baseline


def accepted(run: Path, folder: Path, **rules: Any) -> Path:
    """A baseline of the run with these rules."""
    assert gate(Request(run, folder, update=True))["status"] == "updated"
    document = json.loads((folder / NAME).read_text())
    document["rules"] |= rules
    (folder / NAME).write_text(json.dumps(document))
    return folder


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in document["gates"]}


def test_a_run_against_itself(whole_run: Path, tmp_path: Path) -> None:
    """Timed again in turn, to whatever a busy machine makes of it, and with the same answers on every image."""
    base, xml, markdown = accepted(whole_run, tmp_path / "base"), tmp_path / "gate.xml", tmp_path / "gate.md"
    assert list(read_baseline(base).files) == ["onnx"]
    document = gate(Request(whole_run, base, junit=xml, summary=markdown))
    gates = by_name(document)
    assert gates["baseline.latency.onnxruntime.fp32.b8"]["status"] in ("pass", "inconclusive")
    assert gates["baseline.accuracy"]["value"] == 0.0 and document["accuracy"]["n"] == 397
    others = {name: one["status"] for name, one in gates.items() if name.startswith("baseline.")}
    others.pop("baseline.latency.onnxruntime.fp32.b8")
    assert set(others.values()) == {"pass"} and len(others) == 6
    (latency,) = document["latency"].values()
    assert 0.3 < latency["speedup"]["ratio"] < 3 and "others_busy_pct" in latency["conditions"]
    assert int(ElementTree.parse(xml).getroot().attrib["tests"]) == len(document["gates"])
    assert markdown.read_text().startswith("### demport gate: tiny: ") and json.dumps(document, allow_nan=False)


def test_a_larger_network_fails_and_a_worse_one_too(whole_run: Path, tmp_path: Path) -> None:
    base = accepted(whole_run, tmp_path / "base", latency=None)
    baseline = json.loads((base / NAME).read_text())
    baseline["release"]["figures"]["macs"] /= 2
    baseline["rules"]["limits"] = {"accuracy.simplified": 1.0}
    (base / NAME).write_text(json.dumps(baseline))
    document = gate(Request(whole_run, base))
    assert document["status"] == "fail" and document["latency"] == {}
    failed = [name for name, one in by_name(document).items() if one["status"] == "fail"]
    assert failed == ["baseline.macs", "limit.accuracy.simplified"]


def test_other_data_is_inconclusive(whole_run: Path, tmp_path: Path) -> None:
    base = accepted(whole_run, tmp_path / "base", latency=None)
    baseline = json.loads((base / NAME).read_text())
    baseline["release"]["data"]["fingerprint"] = "0" * 64
    (base / NAME).write_text(json.dumps(baseline))
    gates = by_name(gate(Request(whole_run, base)))
    assert gates["baseline.data"]["status"] == gates["baseline.accuracy"]["status"] == "inconclusive"
    assert "is not the data of the baseline" in gates["baseline.accuracy"]["reason"]


def test_an_update_shows_what_changes_and_takes_a_no(whole_run: Path, tmp_path: Path) -> None:
    base, shown = tmp_path / "base", list[list[str]]()

    def refuse(changes: list[str]) -> bool:
        shown.append(changes)
        return False

    with pytest.raises(UserError, match="were not accepted"):
        gate(Request(whole_run, base, update=True, accept=refuse))
    assert not base.exists() and any(line.startswith("macs: new -> ") for line in shown[0])
    accepted(whole_run, base, limits={"macs": 7.0})
    accepted(whole_run, base)
    assert json.loads((base / NAME).read_text())["rules"]["limits"] == {"macs": 7.0}, "rules stay"
    with pytest.raises(UserError, match="were not accepted"):
        gate(Request(whole_run, base, update=True, accept=refuse))
    assert shown[-1] == []


def resealed(run: Path, **verdict: Any) -> None:
    """The check with another verdict, sealed anew, as if it had said so."""
    folder, path = run / "70-check", run / "70-check" / "check.json"
    document = json.loads(path.read_text())
    document["verdict"] |= verdict
    path.write_text(json.dumps(document))
    (run / "report.json").unlink()
    record = json.loads((folder / "stage.json").read_text())
    from runtime.files import sha256

    record["files"]["check.json"] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    record["digest"] = sha256_of_json([record["fingerprint"], record["files"], record["result"]])
    record["seal"] = seal_of(record)
    (folder / "stage.json").write_text(json.dumps(record))
    read = stage_record.read(folder)
    assert read is not None and read.problem is None


def test_a_failed_verdict_neither_passes_nor_becomes_the_baseline(copied_run: Path, tmp_path: Path) -> None:
    base = accepted(copied_run, tmp_path / "base", latency=None, accuracy=None)
    resealed(copied_run, status="fail", gates=[])
    assert gate(Request(copied_run, base))["status"] == "fail"
    with pytest.raises(UserError, match="the run failed"):
        gate(Request(copied_run, base, update=True))


def test_figures_that_the_check_did_not_leave_are_refused(copied_run: Path, tmp_path: Path) -> None:
    report = json.loads((copied_run / "report.json").read_text())
    fake = {"verdict": report["verdict"] | {"status": "pass", "gates": []}}
    changed: list[dict[str, Any]] = [fake, {"models": {}}, {"name": "x"}]
    for change in changed:
        (copied_run / "report.json").write_text(json.dumps(report | change))
        with pytest.raises(UserError, match=r"report\.json: it was changed after it was written"):
            subject_of(copied_run)
    report["models"]["compact"]["accuracy"]["torch"] = 0.123
    (copied_run / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"report\.json: it was changed after it was written"):
        subject_of(copied_run)
    (copied_run / "report.json").unlink()
    path = copied_run / "70-check" / "check.json"
    path.write_bytes(path.read_bytes().replace(b"accuracy", b"acCuracy", 1))
    with pytest.raises(UserError, match="was changed"):
        subject_of(copied_run)
    shutil.rmtree(copied_run / "60-engine")
    with pytest.raises(UserError, match="60-engine"):
        subject_of(copied_run)


def test_a_stage_of_another_run_is_noticed(copied_run: Path) -> None:
    folder = copied_run / "50-simplify"
    record = json.loads((folder / "stage.json").read_text())
    record["digest"] = "0" * 64
    record["seal"] = seal_of(record)
    (folder / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="50-simplify"):
        subject_of(copied_run)


def test_from_the_command_line(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = accepted(whole_run, tmp_path / "base", latency=None)
    code = cli.command_line(["gate", str(whole_run), "--baseline", str(base)])
    shown = capsys.readouterr()
    document = json.loads(shown.out.splitlines()[-1])
    assert code == {"pass": 0, "inconclusive": 3}[document["status"]]
    assert "baseline.accuracy: " in shown.err
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"kind": "demport baseline", "schema": 1}))
    assert cli.command_line(["gate", str(whole_run), "--baseline", str(old)]) == 2
    assert "schema 1" in capsys.readouterr().err
    assert cli.command_line(["gate", str(tmp_path), "--baseline", str(base)]) == 2
    assert "no run folder" in capsys.readouterr().err
