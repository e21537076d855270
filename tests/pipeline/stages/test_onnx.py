"""Stages 40 to 60 on two small networks, and what stage 60 says where no engine can be built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.engines import Choice, EngineUnavailable
from export.precision.lower import Images, Lowering, Rules
from pipeline import config
from pipeline.config.task import task_of
from pipeline.progress import Silent
from pipeline.results import CastGraphs, Engines, SimplifiedGraphs
from pipeline.stages.engine import _choices, build_engines
from pipeline.stages.onnx import export_graphs, simplify_graphs
from runtime.errors import UserError


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    layers = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10))
    return layers.eval()


SAMPLES = torch.rand(8, 1, 8, 8)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> SimplifiedGraphs:
    exported, simplified = tmp_path_factory.mktemp("40-onnx"), tmp_path_factory.mktemp("50-simplify")
    pair = export_graphs(config.Onnx(), network(4), network(2), SAMPLES, {"demport.model": "two"}, "0" * 64, exported)
    return simplify_graphs(config.Simplify(), pair, SAMPLES, simplified)


def test_each_file_holds_the_network_its_name_says(graphs: SimplifiedGraphs) -> None:
    assert (graphs.dense.path.name, graphs.compact.path.name) == ("dense.onnx", "compact.onnx")
    for path, width in ((graphs.dense.path, 4), (graphs.compact.path, 2)):
        shapes = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer]
        assert (width, 1, 3, 3) in shapes


def test_metadata_names_model_and_role(tmp_path: Path) -> None:
    pair = export_graphs(
        config.Onnx(opset=19), network(4), network(2), SAMPLES, {"demport.model": "two"}, "f0" * 32, tmp_path
    )
    told = {entry.key: entry.value for entry in onnx.load(pair.compact.path).metadata_props}
    assert (
        told.items() >= {"demport.model": "two", "demport.role": "compact", "demport.input_size": "[1, 8, 8]"}.items()
    )
    assert told["demport.plan_sha256"] == "f0" * 32
    assert "demport.plan_sha256" not in {entry.key for entry in onnx.load(pair.dense.path).metadata_props}
    assert (pair.dense.opset, pair.compact.opset) == (19, 19)


def test_simplify_off_keeps_the_bytes_and_says_so(graphs: SimplifiedGraphs, tmp_path: Path) -> None:
    pair = export_graphs(config.Onnx(), network(4), network(2), SAMPLES, {}, "0" * 64, tmp_path)
    (tmp_path / "out").mkdir()
    kept = simplify_graphs(config.Simplify(enabled=False), pair, SAMPLES, tmp_path / "out")
    assert kept.dense.path.read_bytes() == pair.dense.path.read_bytes()
    assert (kept.dense.used, *kept.dense.refused.values()) == ("original", "simplify.enabled is false")
    assert kept.compact.nodes_before == kept.compact.nodes_after == pair.compact.nodes


def lowered(graphs: SimplifiedGraphs, out: Path) -> CastGraphs:
    """Both in fp16, judged on labels that mean nothing."""
    x, labels = SAMPLES.numpy(), np.zeros(len(SAMPLES), np.int64)
    images = Images(x, lambda: [x], lambda: [(x, labels)], task_of().judge())
    pairs = ((role, graph.path) for role, graph in (("dense", graphs.dense), ("compact", graphs.compact)))
    made = {role: Lowering(path, images).write(out / f"{role}.fp16.onnx", "fp16", Rules(100.0)) for role, path in pairs}
    return CastGraphs({"fp16": made["dense"]}, {"fp16": made["compact"]})


def engines(section: config.Engine, graphs: SimplifiedGraphs, tmp_path: Path) -> Engines:
    casts = lowered(graphs, tmp_path)
    return build_engines(section, graphs, casts, "0" * 64, tmp_path, Silent())


def test_engines_switched_off_are_none_at_all(graphs: SimplifiedGraphs, tmp_path: Path) -> None:
    section = config.Engine(flavour="none", targets=("SM86",))
    assert engines(section, graphs, tmp_path).engines == ()
    assert not list(tmp_path.glob("*.engine*"))


def test_without_any_tensorrt_the_stage_ends_with_the_reason(
    graphs: SimplifiedGraphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(flavour: str) -> None:
        raise EngineUnavailable(f"{flavour} cannot be imported: No module named '{flavour}'")

    monkeypatch.setattr("export.engines.tensorrt.targets.load", absent)
    told = engines(config.Engine(targets=("SM86", "SM89"), precisions=("fp32",)), graphs, tmp_path).engines
    assert len(told) == 4 and all(entry.engine is None for entry in told)
    assert all("tensorrt_rtx cannot be imported" in str(entry.reason) for entry in told)


def test_one_small_engine_is_built_for_each_network(graphs: SimplifiedGraphs, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed", exc_type=ImportError)
    section = config.Engine(flavour="tensorrt_rtx", targets=("SM86",), precisions=("fp16",))
    told = engines(section, graphs, tmp_path).engines
    built = [entry.engine for entry in told if entry.engine is not None]
    assert [engine.path.name for engine in built] == ["dense.fp16.SM86.engine", "compact.fp16.SM86.engine"]
    assert all(engine.path.stat().st_size == engine.bytes for engine in built)


def test_each_target_is_built_once_and_a_missing_one_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(flavour: str, targets: tuple[str, ...]) -> object:
        if targets == ("CURRENT",):
            raise EngineUnavailable("no GPU")
        return Choice("tensorrt", ("SM90",))

    monkeypatch.setattr("export.engines.choose", choose)
    section = config.Engine(targets=("SM86", "CURRENT", "SM89"))
    assert _choices(section) == ([("tensorrt", "SM90")], {"CURRENT": "no GPU"})
    monkeypatch.undo()
    assert _choices(config.Engine(flavour="none", targets=())) == ([], {})


@pytest.mark.parametrize("installed", [True, False])
def test_all_adds_an_engine_for_this_cpu_where_openvino_is_installed(
    installed: bool, graphs: SimplifiedGraphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")

    def absent(flavour: str) -> None:
        raise EngineUnavailable(f"{flavour} cannot be imported")

    monkeypatch.setattr("export.engines.tensorrt.targets.load", absent)
    if not installed:
        monkeypatch.setattr("export.engines.openvino.backend.core", openvino_absent)
    notes: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "note", notes.append)
    section = config.Engine(flavour="all", targets=("SM86",), precisions=("fp32", "int8"), tf32=True)
    monkeypatch.setattr("runtime.backends.openvino.precisions", lambda: ("fp32",))
    told = build_engines(section, graphs, lowered(graphs, tmp_path), None, tmp_path, progress).engines
    assert [entry.target for entry in told if entry.engine is None] == ["SM86"] * 4  # TensorRT's, with the reason
    names = [entry.engine.path.name for entry in told if entry.engine is not None]
    assert names == (["dense.fp32.CPU.xml", "compact.fp32.CPU.xml"] if installed else [])
    assert (notes == []) == installed and (installed or "openvino is not installed" in notes[0])


def openvino_absent() -> None:
    raise UserError("openvino is not installed", "OpenVINO", "install openvino")
