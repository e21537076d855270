"""Accuracy from hop to hop in the check: before the cut, beyond the budget, a metric and a reference of ones own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.check.accuracy import Images
from pipeline.check.reading import typed
from pipeline.check.results import Reference
from runtime.errors import UserError
from tests.pipeline.stages.test_check import SECTION, Wrong, run
from tests.runtime.nets import Net, write_onnx


def test_the_network_before_the_cut(tmp_path: Path) -> None:
    _, document = run(tmp_path, masked=Wrong(), batch_sizes=(4,))
    accuracy = document["models"]["compact"]["accuracy"]
    assert list(accuracy)[:2] == ["masked", "torch"] and accuracy["masked"] < accuracy["torch"] == 0.9
    assert "masked" not in document["models"]["dense"]["accuracy"]
    hop = next(hop for hop in document["hops"] if hop["from"] == "masked")
    assert hop["to"] == "torch" and hop["paired"]["only_second"] >= 2 and hop["accuracy_delta"] > 0


def test_the_first_hop_beyond_the_budget_is_named_with_its_images(tmp_path: Path) -> None:
    names = Images(("a", "b", "c", "d"))
    result, document = run(tmp_path, compact=Wrong(), masked=Net(), images=names, batch_sizes=(4,))
    drop = 100 * (0.9 - result.accuracy_compact)
    broken = {"model": "compact", "from": "masked", "to": "torch", "drop_pp": pytest.approx(drop), "limit_pp": 10.0}
    assert document["broken"] == broken
    gate = next(gate for gate in document["verdict"]["gates"] if gate["name"] == "accuracy_at_hops")
    assert gate["status"] == "fail" and gate["reason"].startswith("masked to torch is the first hop beyond the limit")
    worst = document["worst"]
    assert (worst["from"], worst["to"]) == ("masked", "torch") and len(worst["images"]) >= 2
    for image in worst["images"]:
        assert image["label"] == image["before"] != image["after"] and image["label"] in "abcd"
        assert (tmp_path / image["file"]).read_bytes().startswith(b"\x89PNG")


def test_a_metric_of_ones_own_is_gated(tmp_path: Path) -> None:
    limits = SECTION.gates.model_copy(update={"max_metric_drop": 0.0})
    _, document = run(tmp_path, gates=limits, metric="tests.pipeline.check.test_hops:right", batch_sizes=(4,))
    gates = {gate["name"]: gate for gate in document["verdict"]["gates"]}
    assert gates["max_metric_drop"]["status"] == "pass"
    assert document["models"]["dense"]["metric"]["torch"] == 45.0


def right(logits: Any, labels: Any) -> float:
    return float((logits.argmax(axis=1) == labels).sum())


def refuses(logits: Any, labels: Any) -> float:
    raise ValueError("not these")


@pytest.mark.parametrize("what", ["metric", "reference"])
def test_what_the_user_named_is_tried_before_minutes_of_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "v1.onnx").write_bytes(b"no graph")
    named: dict[str, Any] = {"metric": "tests.pipeline.check.test_hops:refuses", "reference": str(tmp_path / "v1.onnx")}
    monkeypatch.setattr("pipeline.check.speed.latencies", lambda *_: pytest.fail("timed first"))
    with pytest.raises(UserError) as caught:
        run(tmp_path, batch_sizes=(4,), **{what: named[what]})
    assert ("not these" if what == "metric" else "v1.onnx") in caught.value.found
    assert not (tmp_path / "check.json").exists()


def test_compact_against_a_reference_model(tmp_path: Path) -> None:
    reference = write_onnx(tmp_path / "v1.onnx")
    _, document = run(tmp_path, reference=str(reference), batch_sizes=(4,))
    told = document["reference"]
    assert (told["file"], told["batch"], len(told["sha256"])) == ("v1.onnx", 4, 64)
    protocol = typed(Reference, told, tmp_path).protocol
    assert protocol["conditions"]["before"] and protocol["gated"] is True
    assert told["speedup"]["ratio"] == pytest.approx(told["reference"]["p50_ms"] / told["compact"]["p50_ms"], rel=0.01)
