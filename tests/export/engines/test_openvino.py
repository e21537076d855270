"""An OpenVINO engine is an IR whose precision is proven from what the compiled network executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.__main__ import main
from export.engines import Engine, EngineUnavailable, engine_from_onnx, engine_name, manifest
from export.engines.options import EngineOptions
from export.engines.preflight import examine, preflight
from runtime.backends import open_session
from runtime.errors import UserError
from runtime.profile.layers import engine_profile, weighted_layers
from tests.export.graphs import conv_net

pytest.importorskip("openvino")

from export.engines import openvino as folder_of_the_backend  # after the skip: the library is an extra
from runtime.backends import openvino as backend


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    source = conv_net(tmp_path / "net.onnx")
    return engine_from_onnx(source, tmp_path / engine_name("net", "fp32", "CPU", "openvino"), flavour="openvino")


def answers(path: Path, name: str | None = None) -> np.ndarray:
    session = open_session(path, name, threads=1)
    session.bind({"input": np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)})
    session.launch()
    session.wait()
    logits = session.fetch()["logits"]
    session.close()
    return logits


def test_float32_is_proven_and_computes_what_the_graph_does(engine: Engine, tmp_path: Path) -> None:
    assert (engine.flavour, engine.target, engine.proof["source"]) == ("openvino", "CPU", "engine")
    assert engine.proof["share"] == 1.0 and set(engine.proof["products"]) == {"fp32"}
    weights = tmp_path / "net.fp32.CPU.bin"
    assert engine.bytes == engine.path.stat().st_size + weights.stat().st_size
    np.testing.assert_allclose(answers(engine.path), answers(tmp_path / "net.onnx"), rtol=1e-4, atol=1e-5)
    content = manifest.verify(engine.path)
    assert content.settings["precision hint"] == "f32" and content.settings["streams"] == 1
    assert content.weights is not None and content.weights.file == weights.name


def test_the_bf16_engine_executes_bf16_or_is_not_built(tmp_path: Path) -> None:
    source, path = conv_net(tmp_path / "net.onnx"), tmp_path / "net.bf16.CPU.xml"
    if "bf16" not in backend.precisions():
        with pytest.raises(EngineUnavailable, match="no bf16 engine"):
            engine_from_onnx(source, path, flavour="openvino", precision="bf16")
        return
    built = engine_from_onnx(source, path, flavour="openvino", precision="bf16")
    assert set(built.proof["products"]) == {"bf16"}
    session = open_session(path)
    assert session.settings["precision hint"] == "bf16"
    session.close()


def test_a_cpu_without_the_precision_is_told_before_and_after(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "precisions", lambda: ("bf16",))
    with pytest.raises(EngineUnavailable, match="this CPU computes in bf16: no fp32 engine"):
        engine_from_onnx(tmp_path / "net.onnx", tmp_path / "other.xml", flavour="openvino")
    said = preflight(engine.path)
    assert said.status == "wrong machine" and said.rebuild == "python -m export rebuild net.fp32.CPU.xml.json"
    monkeypatch.undo()
    assert preflight(engine.path).status == "ok"
    assert examine(engine.path, "26.08", None).status == "unknown"
    assert not (tmp_path / "other.xml").exists()


def test_a_product_in_another_precision_is_refused(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"OpenVINO executes .* another type: . in float32"):
        engine_from_onnx(source, tmp_path / "x.xml", flavour="openvino", precision="int8")
    with pytest.raises(UserError, match=r"engine\.refit, and OpenVINO has nothing of the kind"):
        engine_from_onnx(source, tmp_path / "x.xml", flavour="openvino", options=EngineOptions(refit=True))
    assert [item.name for item in tmp_path.iterdir()] == ["net.onnx"]


def test_either_file_that_was_changed_is_found(engine: Engine, tmp_path: Path) -> None:
    weights = tmp_path / "net.fp32.CPU.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=r"net\.fp32\.CPU\.bin has the SHA-256"):
        preflight(engine.path)
    assert main(["rebuild", str(engine.manifest)]) == 0
    assert preflight(engine.path).status == "ok"


def test_without_the_library_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise UserError("openvino is not installed", "OpenVINO", "install openvino")

    monkeypatch.setattr(backend, "core", absent)
    with pytest.raises(EngineUnavailable, match="openvino is not installed"):
        folder_of_the_backend.OPENVINO.targets(("CPU",))
    with pytest.raises(EngineUnavailable, match="openvino is not installed"):
        folder_of_the_backend.OPENVINO.version()


def test_layers_are_timed_by_the_nodes_in_their_names(engine: Engine, tmp_path: Path) -> None:
    with open_session(engine.path, threads=1) as session:
        session.bind({"input": np.zeros((5, 3, 8, 8), np.float32)})
        profile = engine_profile(session, weighted_layers(tmp_path / "net.onnx"), runs=3)
    layers = [kernel.layer for kernel in profile.kernels if kernel.layer]
    assert layers == list(dict.fromkeys(one.layer for one in weighted_layers(tmp_path / "net.onnx").values()))
    assert profile.run_us == sum(kernel.us for kernel in profile.kernels) > 0
