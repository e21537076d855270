"""Stages 40 to 60 on two small networks, and what stage 60 says where no engine can be built."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from export.flavours import EngineUnavailable
from pipeline import config, exporting
from pipeline.exporting import Engines, SimplifiedGraphs, build_engines, cast_graphs, export_graphs, simplify_graphs
from pipeline.progress import Silent


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    layers = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10))
    return layers.eval()


SAMPLES = torch.rand(8, 1, 8, 8)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> SimplifiedGraphs:
    exported, simplified = tmp_path_factory.mktemp("40-onnx"), tmp_path_factory.mktemp("50-simplify")
    pair = export_graphs(config.Onnx(), network(4), network(2), SAMPLES, {"demport.model": "two"}, exported)
    return simplify_graphs(config.Simplify(), pair, SAMPLES, simplified)


def test_each_file_holds_the_network_its_name_says(graphs: SimplifiedGraphs) -> None:
    assert (graphs.dense.path.name, graphs.compact.path.name) == ("dense.onnx", "compact.onnx")
    for path, width in ((graphs.dense.path, 4), (graphs.compact.path, 2)):
        shapes = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer]
        assert (width, 1, 3, 3) in shapes


def test_metadata_names_model_and_role(tmp_path: Path) -> None:
    pair = export_graphs(config.Onnx(opset=19), network(4), network(2), SAMPLES, {"demport.model": "two"}, tmp_path)
    told = {entry.key: entry.value for entry in onnx.load(pair.compact.path).metadata_props}
    assert told.items() >= {"demport.model": "two", "demport.role": "compact"}.items()
    assert (pair.dense.opset, pair.compact.opset) == (19, 19)


def test_simplify_off_keeps_the_bytes_and_says_so(graphs: SimplifiedGraphs, tmp_path: Path) -> None:
    pair = export_graphs(config.Onnx(), network(4), network(2), SAMPLES, {}, tmp_path)
    (tmp_path / "out").mkdir()
    kept = simplify_graphs(config.Simplify(enabled=False), pair, SAMPLES, tmp_path / "out")
    assert kept.dense.path.read_bytes() == pair.dense.path.read_bytes()
    assert (kept.dense.used, kept.dense.reason) == ("original", "simplify.enabled is false")
    assert kept.compact.nodes_before == kept.compact.nodes_after == pair.compact.nodes


def test_lower_precisions_are_those_of_the_section(graphs: SimplifiedGraphs, tmp_path: Path) -> None:
    none = cast_graphs(config.PrecisionSection(graphs=()), graphs, SAMPLES, tmp_path)
    assert none.dense == none.compact == {} and not list(tmp_path.iterdir())
    half = cast_graphs(config.PrecisionSection(), graphs, SAMPLES, tmp_path)
    assert half.dense["fp16"].path == tmp_path / "dense.fp16.onnx" and half.compact["fp16"].nodes_fp16 > 0


def engines(section: config.Engine, graphs: SimplifiedGraphs, tmp_path: Path) -> Engines:
    casts = cast_graphs(config.PrecisionSection(), graphs, SAMPLES, tmp_path)
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

    monkeypatch.setattr("export.flavours.load", absent)
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
        return type("Choice", (), {"targets": ("SM90",)})()

    monkeypatch.setattr(exporting, "choose", choose)
    section = config.Engine(targets=("SM86", "CURRENT", "SM89"))
    assert exporting._targets(section) == (["SM90"], {"CURRENT": "no GPU"})
    monkeypatch.undo()
    assert exporting._targets(config.Engine(flavour="none", targets=())) == ([], {})
