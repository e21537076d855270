"""check.json is read back only as a check can have left it, and as the values that were written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.check import results
from pipeline.check.reading import implausible, typed
from pipeline.check.results import CheckDocument
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES
from tests.pipeline.report.check_document import check


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    document = typed(CheckDocument, check(), tmp_path / "check.json")
    results.write(tmp_path / "check.json", document)
    assert results.read(tmp_path / "check.json") == document
    stored = json.loads((tmp_path / "check.json").read_text("utf-8"))
    assert stored["hops"][0]["from"] == "masked" and stored["schema"] == 1
    assert {*stored} == {*check()}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("models", "dense", "params"), "many", "models.dense.params: "),
        (("models", "compact", "accuracy", "torch"), 1.4, "models.compact.accuracy.torch: 1.4 is not within 0 and 1"),
        (("models", "compact", "macs"), -1, "models.compact.macs: -1 is negative"),
        (("latency", "onnxruntime", "fp32", "b32", "speedup", "ci95"), [0.0, 0.0], "does not hold the ratio"),
        (("latency", "onnxruntime", "fp32", "b32", "speedup", "ci95"), [1.9, 2.1], "does not hold the ratio"),
        (("latency", "onnxruntime", "fp32", "b32", "dense", "p50_ms"), float("inf"), "finite"),
        (("latency", "onnxruntime", "fp32", "b32", "dense", "samples_ms"), [None], "samples_ms.0"),
        (("latency", "onnxruntime", "fp32", "b32", "protocol"), "x", "protocol"),
        (("verdict", "status"), "perfect", "verdict.status"),
        (("verdict", "gates", 0, "value"), float("nan"), "verdict.gates.0.value"),
        (("schema",), 2, "schema"),
    ],
)
def test_a_figure_that_no_check_leaves_is_named(
    tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    document: Any = json.loads(json.dumps(check()))
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "check.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        results.read(tmp_path / "check.json")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.found.startswith(str(tmp_path / "check.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting property name"),
        (b"[" * 200_000, "nested too deep"),
        (b"[]", "not an object"),
        (b" " * (MAX_JSON_BYTES + 1), f"over {MAX_JSON_BYTES} bytes"),
        (b"\xff\xfe", "decode"),
    ],
    ids=["cut short", "deep", "list", "long", "bytes"],
)
def test_what_is_no_json_object_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "check.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        results.read(tmp_path / "check.json")
    assert "--redo" in caught.value.remedy


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "check.json")
    with pytest.raises(UserError, match="no plain file"):
        results.read(tmp_path / "check.json")
    assert list(implausible({"n": -1, "p_value": 2.0, "name": "n", "metric": {"mse": -3.0}})) == [
        "n: -1 is negative", "p_value: 2.0 is not within 0 and 1",
    ]  # fmt: skip
