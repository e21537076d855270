"""`demport gate` on a folder that holds a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.gating import Request, gate
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES
from tests.runtime.test_baseline import report


def write(run: Path, document: Any) -> None:
    (run / "report.json").write_text(json.dumps(document))


def test_update_then_pass_then_regress(tmp_path: Path) -> None:
    baseline, xml, markdown = tmp_path / "baseline.json", tmp_path / "gate.xml", tmp_path / "gate.md"
    write(tmp_path, report())
    assert gate(Request(tmp_path, baseline, update=True))["status"] == "updated"
    assert gate(Request(tmp_path, baseline))["status"] == "pass"
    document = report()
    document["models"]["compact"]["accuracy"]["torch"] = 0.9
    write(tmp_path, document)
    before = baseline.read_bytes()
    told = gate(Request(tmp_path, baseline, junit=xml, summary=markdown))
    assert told["status"] == "fail"
    assert [one["name"] for one in told["gates"] if one["status"] == "fail"] == ["baseline.accuracy.torch"]
    assert baseline.read_bytes() == before
    assert ElementTree.parse(xml).getroot().attrib["failures"] == "1"
    assert "**failed**" in markdown.read_text()
    assert json.dumps(told, allow_nan=False)


def test_an_update_shows_what_changes_and_takes_a_no(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    write(tmp_path, report())
    shown: list[list[str]] = []

    def accept(answer: bool) -> Request:
        def ask(changes: list[str]) -> bool:
            shown.append(changes)
            return answer

        return Request(tmp_path, baseline, update=True, accept=ask)

    with pytest.raises(UserError, match="the figures were not accepted"):
        gate(accept(False))
    assert not baseline.exists() and "speedup.onnxruntime.fp32.b32: new -> 2" in shown[0]
    gate(accept(True))
    document = report()
    document["models"]["compact"]["params"] = 900
    del document["models"]["compact"]["accuracy"]["onnx"]
    write(tmp_path, document)
    gate(accept(True))
    assert shown[-1] == ["accuracy.onnx: 0.99 -> gone", "params: 1000 -> 900"]


def test_another_device_is_added_by_an_update(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    write(tmp_path, report())
    gate(Request(tmp_path, baseline, update=True))
    document = report()
    document["environment"]["fingerprint"] = "cccc"
    write(tmp_path, document)
    assert gate(Request(tmp_path, baseline))["status"] == "inconclusive"
    gate(Request(tmp_path, baseline, update=True))
    assert gate(Request(tmp_path, baseline))["status"] == "pass"
    assert set(json.loads(baseline.read_text())["devices"]) == {"aaaa", "cccc"}


def test_a_corrupt_baseline_is_not_overwritten(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    baseline.write_text("{}")
    write(tmp_path, report())
    for update in (False, True):
        with pytest.raises(UserError, match="Field required"):
            gate(Request(tmp_path, baseline, update=update))
    assert baseline.read_text() == "{}"
    with pytest.raises(UserError, match="No such file"):
        gate(Request(tmp_path, tmp_path / "absent.json"))


def test_a_report_too_long_to_be_one_is_not_read_to_its_end(tmp_path: Path) -> None:
    write(tmp_path, report())
    gate(Request(tmp_path, tmp_path / "baseline.json", update=True))
    with (tmp_path / "report.json").open("ab") as file:
        file.write(b" " * MAX_JSON_BYTES)
    with pytest.raises(UserError, match=f"report.json: over {MAX_JSON_BYTES} bytes") as caught:
        gate(Request(tmp_path, tmp_path / "baseline.json"))
    assert caught.value.expected == "the report of a run"


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), ("{", "Expecting"), ("{}", "not whole"), ("[]", "not an object")]
)
def test_a_folder_without_a_report(tmp_path: Path, content: str | None, words: str) -> None:
    baseline = tmp_path / "baseline.json"
    write(tmp_path, report())
    gate(Request(tmp_path, baseline, update=True))
    (tmp_path / "report.json").unlink()
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError) as caught:
        gate(Request(tmp_path, baseline))
    assert words in caught.value.found
    assert caught.value.remedy
