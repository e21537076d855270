"""The export benchmark: its network dies as it says, other tools' failures are reasons, its limits decide."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engines import export
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS, UserError


def test_three_channels_in_ten_are_dead() -> None:
    network = export.dying_resnet50()
    scales = {name: p for name, p in network.named_parameters() if name.endswith((".bn1.weight", ".bn2.weight"))}
    assert len(scales) == 2 * 16
    for scale in scales.values():
        assert int((scale == 0).sum()) == sum(index % 10 < 3 for index in range(len(scale)))


def test_a_tool_that_is_absent_or_fails_gets_its_reason(tmp_path: Path) -> None:
    (tmp_path / "exported.onnx").write_bytes(b"no graph")
    np.save(tmp_path / "images.npy", np.zeros(1))
    absent = export.peers(None, tmp_path)
    assert {point["reason"] for point in absent} == {"no --peers given"}
    told = export.peers(Path(sys.executable), tmp_path)
    assert [point["tool"] for point in told] == [tool for tool, _ in export.PEERS.values()]
    assert all(point["time_s"] is None and point["reason"] for point in told)
    assert json.loads((tmp_path / "olive.json").read_text())["input_model"]["model_path"].endswith("exported.onnx")


@pytest.mark.parametrize(("limit_s", "code"), [(1e9, EXIT_PASS), (0.0, EXIT_GATE_FAILED)])
def test_limits_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float, code: int) -> None:
    step = {"tool": "demport", "step": "export", "time_s": 1.5, "reason": None}
    monkeypatch.setattr(export, "ours", lambda folder, images: [step])
    monkeypatch.setattr(export, "latencies", lambda folder: [])
    monkeypatch.setattr(export, "LIMIT_S", limit_s)
    assert export.main(["--out", str(tmp_path / "r.json")]) == code
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["points"][0] == step
    assert document["points"][1]["step"] == "all" and 0 < document["points"][1]["peak_gib"] < 64


def test_measurements_are_added_to_those_of_the_same_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"tool": "demport", "step": "export", "time_s": 1.5, "reason": None}
    monkeypatch.setattr(export, "ours", lambda folder, images: [step])
    monkeypatch.setattr(export, "latencies", lambda folder: [])
    out = tmp_path / "r.json"
    for count in (1, 2, 3):
        assert export.main(["--out", str(out), *["--add"] * (count > 1)]) == EXIT_PASS
        document = json.loads(out.read_text())
        assert (document["n"], document["points"].count(step)) == (count, count)
    with pytest.raises(UserError, match=r"r\.json was measured otherwise"):
        export.main(["--out", str(out), "--add", "--images", "5"])
    assert json.loads(out.read_text()) == document
