"""The line with OpenVINO engines to its end on a CPU: checked at their hop, timed, explained, gated, published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.engines.manifest import read, verify
from pipeline import cli
from runtime.backends import open_session
from runtime.errors import UserError
from runtime.files import sha256
from runtime.gate.baseline import read_baseline

pytest.importorskip("openvino")


def call(*arguments: str | Path) -> int:
    return cli.command_line([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(config: Path, whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with engines of OpenVINO: stages 60 and 70 run anew."""
    folder = shutil.copytree(whole_run, tmp_path_factory.mktemp("openvino") / "run")
    assert call("run", config, "--out", folder, "--set", "engine.flavour=openvino") in (0, 3)
    return Path(folder)


def test_the_engine_is_measured_and_explained_at_its_hop(run: Path) -> None:
    document = json.loads((run / "70-check" / "check.json").read_text())
    accuracy = document["models"]["compact"]["accuracy"]
    assert abs(accuracy["openvino.fp32.CPU"] - accuracy["simplified"]) <= 1 / 397  # one image on the border at most
    entry = document["latency"]["openvino"]["fp32"]["b8"]
    assert entry["speedup"]["ratio"] > 0 and entry["settings"]["compact"]["precision hint"] == "f32"
    why = next(one for one in document["why"] if one["where"] == "openvino fp32")
    assert len(why["layers"]) == 10 and why["threads"] == 1  # nine convolutions and the classifier, by their names
    gates = {gate["name"]: gate for gate in document["verdict"]["gates"]}
    assert gates["engines"]["status"] == "pass" and entry["protocol"]["gated"]
    assert gates["min_speedup"]["value"] == entry["speedup"]["ratio"]
    assert gates["min_speedup"]["reason"].startswith("OpenVINO, fp32, batch 8: ")
    assert not document["latency"]["onnxruntime"]["fp32"]["b8"]["protocol"]["gated"]
    assert "openvino fp32 for CPU" in (run / "report.md").read_text()
    measured = read(run / "70-check" / "engines" / "compact.fp32.CPU.xml").measured
    assert measured is not None and measured.accuracy == accuracy["openvino.fp32.CPU"]


def test_a_gate_times_the_accepted_engine_against_the_new_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    assert call("gate", run, "--baseline", base, "--update", "--yes") == 0
    stored = read_baseline(base).files["openvino.fp32.CPU"]
    assert sorted(Path(file).suffixes[-1] for file in stored.digests()) == [".bin", ".json", ".xml"]
    with open_session(base / stored.file, threads=1) as session:  # its weights and its manifest go with it
        assert session.backend == "openvino" and session.settings["precision hint"] == "f32"
    capsys.readouterr()
    assert call("gate", run, "--baseline", base) in (0, 3)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(document["latency"]) == {"onnxruntime.fp32.b8", "openvino.fp32.CPU.b8"}
    assert 0.2 < document["latency"]["openvino.fp32.CPU.b8"]["speedup"]["ratio"] < 5
    weights = next(base.glob("*.bin"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=r"\.bin was changed"):
        read_baseline(base)


def test_bench_times_two_engines_in_turn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = [run / "60-engine" / f"{role}.fp32.CPU.xml" for role in ("dense", "compact")]
    capsys.readouterr()
    assert call("bench", *engines, "--batch", "8", "--threads", "1", "--time-limit", "1", "--min-blocks", "5") == 0
    dense, compact = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert dense["p50_ms"] > 0 and dense["speedup"] is None
    assert compact["speedup"]["ratio"] == pytest.approx(dense["p50_ms"] / compact["p50_ms"], rel=0.2)


def test_preflight_and_a_bundle_with_what_it_was_measured_with(run: Path, tmp_path: Path) -> None:
    engine = run / "60-engine" / "compact.fp32.CPU.xml"
    assert call("preflight", engine) == 0 and verify(engine).settings["streams"] == 1
    assert call("publish", run, tmp_path / "bundle", "--format", "bundle") == 0
    served, half = json.loads((tmp_path / "bundle" / "config.json").read_text())["model_config_list"]
    assert half["config"]["plugin_config"] == {"INFERENCE_PRECISION_HINT": "f32"}  # no engine of the fp16 graph
    assert served["config"]["plugin_config"] == {
        "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1",
    }  # fmt: skip
    told = json.loads((tmp_path / "bundle" / served["config"]["name"] / "openvino.json").read_text())
    graph = tmp_path / "bundle" / served["config"]["name"] / "2" / "model.onnx"
    assert sorted(told) == ["1", "2"] and told["2"]["onnx"]["sha256"] == sha256(graph)
    assert told["2"]["settings"]["threads"] == 1 and told["2"]["measured"]["latency"][0]["batch"] == 8
    assert call("publish", run, tmp_path / "models") == 0
    assert (tmp_path / "models" / "tiny" / "2" / "model.onnx").is_file()
    assert not list((tmp_path / "models").rglob("*.xml"))  # no Triton backend of demport's takes them
