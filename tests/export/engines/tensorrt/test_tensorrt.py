"""Real engines, built ahead of time by TensorRT-RTX, and graphs that it must refuse."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest

from export.engines import Engine, manifest
from export.engines.preflight import preflight
from export.engines.tensorrt.child import ROOT
from export.engines.tensorrt.preflight import Machine, _asked_rtx
from export.engines.tensorrt.targets import load
from runtime.errors import UserError
from runtime.gpu import first_gpu
from tests.export.graphs import conv_net
from tests.export.small_engines import build, needs_rtx, typed_net

pytestmark = needs_rtx


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network of 2.4 million weights, in fp32 and fp16."""
    folder = tmp_path_factory.mktemp("graphs")
    full = conv_net(folder / "net.onnx", width=512)
    return {"fp32": full, "fp16": typed_net(folder / "half.onnx", "FLOAT16", width=512)}


@pytest.fixture(scope="module")
def engines(graphs: dict[str, Path]) -> dict[str, Engine]:
    """fp32 and fp16 for SM86, fp16 for SM89."""
    folder = graphs["fp32"].parent / "engines"

    def made(precision: Literal["fp32", "fp16"], target: str) -> Engine:
        name = f"net.{precision}.{target}.engine"
        return build(graphs[precision], folder / name, precision=precision, target=target, plan_sha256="ab" * 32)

    return {"fp32": made("fp32", "SM86"), "fp16": made("fp16", "SM86"), "ada": made("fp16", "SM89")}


def test_engines_are_real_and_half_the_size_in_fp16(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        content = engine.path.read_bytes()
        assert content.startswith(b"vtrt")  # TensorRT-RTX's own first bytes, nothing of ours before them
        assert (engine.bytes, engine.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    weights = 4 * 512 * (27 + 9 * 512)  # bytes of the two convolutions in fp32
    assert engines["fp32"].bytes > weights
    assert weights / 2 < engines["fp16"].bytes < 0.6 * engines["fp32"].bytes
    assert engines["fp16"].sha256 != engines["ada"].sha256


def test_layers_prove_the_precision(engines: dict[str, Engine]) -> None:
    assert engines["fp32"].layers["CONVOLUTION"] == {"FLOAT": 2}
    assert engines["fp32"].layers["MATRIX_MULTIPLY"] == {"FLOAT": 1}
    assert "CAST" not in engines["fp32"].layers
    assert engines["fp16"].layers["CONVOLUTION"] == {"HALF": 2}
    assert engines["fp16"].layers["MATRIX_MULTIPLY"] == {"HALF": 1}
    assert engines["fp16"].layers["CAST"] == {"HALF": 1, "FLOAT": 1}


def test_manifest_tells_all(engines: dict[str, Engine], graphs: dict[str, Path]) -> None:
    engine = engines["fp16"]
    told = manifest.verify(engine.path)
    assert (told.flavour, told.precision, told.target, told.options.tf32) == ("tensorrt_rtx", "fp16", "SM86", False)
    assert (told.sha256, told.bytes, told.plan_sha256) == (engine.sha256, engine.bytes, "ab" * 32)
    assert told.onnx.file == "../half.onnx"
    assert told.onnx.sha256 == hashlib.sha256(graphs["fp16"].read_bytes()).hexdigest()
    assert [(t.name, t.dtype, t.shape) for t in told.inputs] == [("input", "float32", [None, 3, 8, 8])]
    assert [(t.name, t.dtype, t.shape) for t in told.outputs] == [("logits", "float32", [None, 5])]
    limits = told.profiles[0]["input"]
    assert (limits.min, limits.opt, limits.max) == ([1, 3, 8, 8], [8, 3, 8, 8], [16, 3, 8, 8])
    assert told.max_batch == 16
    assert told.version.count(".") >= 2


def test_preflight_of_a_real_engine(engines: dict[str, Engine]) -> None:
    engine = engines["ada"].path
    gpu = first_gpu()
    told = preflight(engine)
    if gpu is None:
        assert (told.status, told.reasons) == ("wrong machine", ("no NVIDIA GPU or driver was found",))
        machine = Machine("this machine", "1.7.1", None, "NVIDIA H100", "SM90", "13.0")
        asked = _asked_rtx(
            load("tensorrt_rtx"), engine, manifest.read(engine), machine
        )  # the real library, without a driver
        assert asked.status == "unknown"
        assert asked.reasons[0] == "TensorRT-RTX gives no reason; the GPU is SM90, the engine is for SM89"
    else:
        assert told.status in ("ok", "wrong machine")
        assert (told.status == "ok") >= (gpu.target == "SM89")


def test_folder_holds_engines_manifests_and_logs_only(engines: dict[str, Engine]) -> None:
    names = sorted(item.name for item in engines["fp32"].path.parent.iterdir())
    stems = [f"net.{p}.{t}.engine" for p, t in (("fp16", "SM86"), ("fp16", "SM89"), ("fp32", "SM86"))]
    assert names == sorted(stem + end for stem in stems for end in ("", ".json", ".log"))
    log = engines["fp32"].log.read_text()
    assert "[INFO] Engine generation completed" in log
    assert engines["fp32"].seconds < 60


def test_rebuild_command_makes_the_same_bytes(
    engines: dict[str, Engine], graphs: dict[str, Path], tmp_path: Path
) -> None:
    engine = engines["fp16"]
    copy = tmp_path / "graphs" / engine.path.name  # the graph lies in the folder above the engine's
    copy.parent.mkdir()
    shutil.copy(graphs["fp16"], tmp_path)
    shutil.copy(manifest.manifest_path(engine.path), copy.parent)
    words = shlex.split(manifest.read(engine.path).command())
    assert words == ["python", "-m", "export", "rebuild", f"{engine.path.name}.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    ran = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=copy.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == engine.sha256


def test_precision_that_the_graph_is_not_in_is_refused(graphs: dict[str, Path], folder: Path) -> None:
    with pytest.raises(UserError, match=r"type: 3 in float32, 100% .*first 'conv2'; at least 50% .* in float16"):
        build(graphs["fp32"], folder / "x.engine", precision="fp16")
    with pytest.raises(UserError, match=r"another type: 3 in float16, 100% .*; all of them in float32"):
        build(graphs["fp16"], folder / "x.engine")
    assert [item.name for item in folder.iterdir()] == ["x.engine.log"]


def test_the_builders_own_first_error_is_what_the_user_reads(tmp_path: Path, folder: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"for SM75: .*FP32 GEMM is not supported") as caught:
        build(source, folder / "x.engine", target="SM75")
    assert "\n" not in str(caught.value)
    assert "FP32 GEMM is not supported" in (folder / "x.engine.log").read_text()
    assert not (folder / "x.engine").exists()


@pytest.mark.parametrize(("workspace", "reason"), [(1, "within workspace limit"), (16, "OutOfMemory")])
def test_a_workspace_that_is_too_small(tmp_path: Path, folder: Path, workspace: int, reason: str) -> None:
    source = conv_net(tmp_path / "net.onnx", width=16, side=64)  # an activation takes 16 MiB at batch 64
    with pytest.raises(UserError, match=reason) as caught:
        build(source, folder / "x.engine", workspace_mib=workspace, profile=(1, 8, 64))
    assert caught.value.expected == "more workspace"
    assert caught.value.remedy == f"double engine.workspace_mib ({workspace}) or lower engine.profile.max (64)"
    assert build(source, folder / "x.engine", workspace_mib=256, profile=(1, 8, 64)).bytes > 0


def test_an_operator_that_the_parser_does_not_know_is_named(tmp_path: Path, folder: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    model = onnx.load(str(source))
    model.graph.node[1].domain, model.graph.node[1].op_type = "nobody", "Mystery"
    model.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    onnx.save(model, str(source))
    with pytest.raises(UserError, match=r"cannot read .*net\.onnx: node 'relu1' \(Mystery\): ") as caught:
        build(source, folder / "x.engine")
    assert "\n" not in str(caught.value)
    assert not (folder / "x.engine").exists()


@pytest.mark.parametrize(
    ("net", "changes", "found"),
    [
        ({"batch": 4}, {}, r"batch of 'input' in .* is fixed at 4; a dynamic batch for the profile \[1, 8, 16\]"),
        ({"side": "side"}, {}, r"input 'input' of .* has the shape \[None, 3, None, None\]; only the batch dynamic"),
        ({}, {"profile": (1, 16, 8)}, "min 1, opt 16, max 8; expected min <= opt <= max"),
        ({}, {"profile": (0, 1, 8)}, r"engine.profile.min: Input should be greater than or equal to 1"),
        ({}, {"target": "SM87"}, "engine target 'SM87'; one of SM75, SM80, SM86"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, folder: Path, net: dict[str, Any], changes: dict[str, Any], found: str
) -> None:
    source = conv_net(tmp_path / "net.onnx", **net)
    with pytest.raises(UserError, match=found):
        build(source, folder / "x.engine", **changes)
    assert not (folder / "x.engine").exists()
    assert not (folder / "x.engine.json").exists()


def test_missing_and_broken_onnx(tmp_path: Path, folder: Path) -> None:
    for flavour in ("tensorrt_rtx", "tensorrt"):  # of which the second is not here
        with pytest.raises(UserError, match=r"gone\.onnx cannot be read"):
            build(tmp_path / "gone.onnx", folder / "x.engine", flavour=flavour)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"cannot read .*bad\.onnx"):
        build(tmp_path / "bad.onnx", folder / "x.engine")
    whole = conv_net(tmp_path / "net.onnx").read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*bad\.onnx: .*; a whole ONNX file; export") as caught:
            build(tmp_path / "bad.onnx", folder / "x.engine")
        assert "\n" not in str(caught.value)
    assert not (folder / "x.engine").exists()


def test_a_foreign_detector_with_a_fixed_batch(real_data: Path, folder: Path) -> None:
    source = real_data / "weights" / "linzaer_version-slim-320_simplified.onnx"
    engine = build(source, folder / "x.engine", target="SM89", profile=(1, 1, 1))
    told = manifest.verify(engine.path)
    assert told.profiles == []
    assert [tensor.shape for tensor in told.inputs] == [[1, 3, 240, 320]]
    assert {tensor.name for tensor in told.outputs} == {"scores", "boxes"}
    assert told.max_batch == 1


def test_a_failed_rebuild_keeps_the_old_engine(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    engine = build(source, tmp_path / "x.engine")
    with pytest.raises(UserError):
        build(source, tmp_path / "x.engine", target="SM75")
    assert manifest.verify(engine.path).sha256 == engine.sha256
    assert sorted(item.name for item in tmp_path.iterdir()) == ["net.onnx", "x.engine", "x.engine.json", "x.engine.log"]
