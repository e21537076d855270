"""`demport shrink --onnx` as a user calls it: the folder, the document, the inputs given, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from pipeline import cli
from pipeline.models.onnx import network_from_onnx
from pipeline.surgery import load_compact
from tests.pipeline.models.onnx.graphs import Array, graph, normal, with_zero_rows

node = helper.make_node
FILES = {"model.onnx", "plan.json", "weights.safetensors", "certificate.json"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx: six channels of which 1 and 4 are dead, read by a layer of five outputs."""
    monkeypatch.chdir(tmp_path)
    nodes = [
        node("Conv", ["image", "a"], ["h"], "first"), node("LeakyRelu", ["h"], ["r"]),
        node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0), node("Gemm", ["m", "b"], ["scores"], transB=1),
    ]  # fmt: skip
    weights = {"a": with_zero_rows(6, 3, 3, 3, dead=[1, 4]), "b": normal(5, 6)}
    onnx.save(graph(nodes, weights, {"image": ("N", 3, 8, 8)}, ["scores"], 13), "net.onnx")
    np.savez("given.npz", image=normal(4, 3, 8, 8))
    return tmp_path


def run(path: str, image: Array) -> Array:
    (scores,) = onnxruntime.InferenceSession(path).run(["scores"], {"image": image})
    return np.asarray(scores)


def shrink(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert cli.command_line(["shrink", "--onnx", "net.onnx", "--out", "out", *arguments]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(document, dict)
    return document


def test_dead_channels_that_stay_are_said_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4 live channels of 6 are 6 at a multiple of 8: the layer has no more."""
    assert cli.command_line(["shrink", "--onnx", "net.onnx", "--out", "out", "--set", "surgery.align=8"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["channels_after"] == 6
    assert "2 dead channels stay" in captured.err and "surgery.align=8" in captured.err


def test_a_file_is_cut_by_proof(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = shrink(capsys, "--set", "surgery.align=1", "--inputs", "given.npz")
    assert [document[f"channels_{n}"] for n in ("before", "dead", "after")] == [6, 2, 4]
    assert document["parameters"] == {"before": 6 * 27 + 30, "after": 4 * 27 + 20}
    assert {p.name for p in Path("out").iterdir()} == FILES and document["frozen_nodes"] == 0
    image = normal(7, 3, 8, 8, seed=5)
    assert np.allclose(run("out/model.onnx", image), run("net.onnx", image), atol=1e-6)
    law = json.loads(Path("out/certificate.json").read_text())["onnx"]["law"]
    assert law["inputs"] == ["random, batch 2", "random, batch 3", "given.npz"]
    assert law["reference_rel_diff"] < 1e-12 and law["max_rel_diff"] < 1e-5


def test_the_plan_loads_into_the_network_of_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shrink(capsys, "--set", "surgery.align=1")
    compact = load_compact("out", network_from_onnx(Path("net.onnx")).module)
    import torch

    image = normal(2, 3, 8, 8)
    assert np.allclose(compact(torch.from_numpy(image)).numpy(force=True), run("net.onnx", image), atol=1e-6)
    assert sum(p.numel() for p in compact.parameters()) == 4 * 27 + 20


def test_widths_are_aligned_as_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = shrink(capsys, "--set", "surgery.align=4")
    assert document["channels_after"] == 4
    assert shrink_fails(capsys, "--set", "surgery.align=auto").startswith("error: surgery.align=auto with --onnx")


def shrink_fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.command_line(["shrink", "--onnx", "net.onnx", "--out", "other", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and not Path("other").exists()
    return captured.err


def test_what_is_refused_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.npz").write_bytes(b"no archive")
    np.savez("odd.npz", other=normal(4, 3, 8, 8))
    assert "--onnx with a network's options" in shrink_fails(capsys, "--model", "demo:resnet")
    assert "bad.npz cannot be read" in shrink_fails(capsys, "--inputs", "bad.npz")
    assert "samples for image" in shrink_fails(capsys, "--inputs", "odd.npz")
    data = Path("net.onnx").read_bytes()
    Path("net.onnx").write_bytes(data[: len(data) // 2])
    assert shrink_fails(capsys).startswith("error: net.onnx")
    assert cli.command_line(["shrink", "--out", "other"]) == 2
    assert "no --model and --weights" in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/notes").write_text("mine")
    assert cli.command_line(["shrink", "--onnx", "net.onnx", "--out", "mine"]) == 2
    assert "mine is there already" in capsys.readouterr().err
    assert Path("mine/notes").read_text() == "mine" and len(list(Path("mine").iterdir())) == 1
