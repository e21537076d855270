"""Two networks made elsewhere: the guide's three configs run, and what does not fit is one line."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import demport
from pipeline import cli
from tests.conftest import REPOSITORY

NETS = """
import torch
from torch import nn

def net(width, classes=4):
    torch.manual_seed(width)
    layers = nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, classes))

def dense():
    return net(16)

def small():
    return net(6)
"""
QUICK = """
threads: 1
engine: {flavour: none}
precision: {graphs: []}
check:
  {batch_sizes: [4], gate_batch: 4, threads: 1, min_blocks: 3, time_limit_s: 1, streams: [],
   gates: {min_speedup: 0, max_accuracy_drop: 100}}
"""
FORMS = ("plan", "torch", "onnx")


@pytest.fixture(scope="module")
def guide() -> dict[str, str]:
    text = (REPOSITORY / "docs" / "from-a-checkpoint.md").read_text("utf-8")
    _, *configs = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return dict(zip(FORMS, configs, strict=True))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the guide's configs name; a quarter of dense's first channels is dead."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    nets: dict[str, Any] = {}
    exec(NETS, nets)
    dense: nn.Module = nets["dense"]()
    with torch.no_grad():
        first = dense.get_submodule("0")
        first.weight[:4] = 0  # type: ignore[operator]
        first.bias[:4] = 0  # type: ignore[operator]
    torch.save(dense.state_dict(), folder / "dense.pth")
    torch.save(nets["small"]().state_dict(), folder / "small.pth")
    demport.save(demport.shrink(dense, (torch.zeros(2, 1, 8, 8),)), folder / "compact")
    for name, network in (("dense", dense), ("small", nets["small"]())):
        demport.onnx_from_torch(network, torch.randn(8, 1, 8, 8), folder / f"{name}.onnx")
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 4
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return folder


@pytest.fixture
def place(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with the same, from which `nets` is imported."""
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("nets", None)
    return tmp_path


def run(text: str, *words: str) -> int:
    Path("c.yaml").write_text(text + QUICK, encoding="utf-8")
    return cli.command_line(["run", "c.yaml", "--out", "run", *words])


@pytest.mark.parametrize("form", FORMS)
def test_the_guides_configs_end_in_graphs_that_compute_what_the_networks_do(
    form: str, guide: dict[str, str], place: Path
) -> None:
    assert run(guide[form], "--until", "simplify") == 0
    import nets  # type: ignore[import-not-found]  # it was just written

    state = torch.load("dense.pth", weights_only=True)
    dense = nets.dense()
    dense.load_state_dict(state)
    smaller = dense if form == "plan" else nets.small()
    images = torch.randn(5, 1, 8, 8)
    for role, network in (("dense", dense), ("compact", smaller)):
        with demport.open_session(place / "run" / "50-simplify" / f"{role}.onnx", device="cpu") as session:
            session.bind({session.inputs[0].name: images.numpy()})
            session.launch()
            session.wait()
            (answer,) = session.fetch().values()
        assert np.abs(answer - network.eval()(images).detach().numpy()).max() < 1e-5
    result = json.loads((place / "run" / "05-pair" / "stage.json").read_text())["result"]
    assert (result["max_abs"] < 1e-6) == (form == "plan") and result["images"] == 40
    widths = [one.dims[0] for one in onnx.load("run/40-onnx/compact.onnx").graph.initializer if len(one.dims) == 4]
    assert min(widths) == {"plan": 8, "torch": 6, "onnx": 6}[form]
    assert {"plan": 12, "torch": 8, "onnx": 8}[form] == max(widths)


def test_a_pair_of_onnx_files_goes_to_the_report_the_card_a_repository_and_a_baseline(
    guide: dict[str, str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(guide["onnx"]) == 0
    assert cli.command_line(["report", "run", "--card"]) == 0
    assert cli.command_line(["publish", "run", "served"]) == 0
    assert cli.command_line(["gate", "run", "--baseline", "accepted", "--update", "--yes"]) == 0
    report = json.loads(Path("run/report.json").read_text())
    assert [gate["name"] for gate in report["verdict"]["gates"]] == [
        "max_accuracy_drop", "accuracy_at_hops", "min_speedup", "engines",
    ]  # fmt: skip
    assert (report["pair"]["dense"]["source"], report["pair"]["compact"]["form"]) == ("dense.onnx", "onnx")
    assert report["surgery"]["law"] is None
    assert report["surgery"]["reasons"]["law"] == "both networks were made elsewhere"
    for page in ("report.md", "report.html", "README.md"):
        text = Path("run", page).read_text("utf-8")
        assert "without changing the function" not in text and "It computes the same function" not in text
    assert "Not claimed; both networks were made elsewhere" in Path("run/report.md").read_text("utf-8")
    assert [one["folder"] for one in report["stages"]][:2] == ["05-pair", "40-onnx"]
    assert list(Path("served").rglob("model.onnx"))
    capsys.readouterr()
    assert cli.command_line(["check", "run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] == ["70-check"]


def test_a_folder_that_shrink_onnx_wrote_is_taken_for_its_file(place: Path) -> None:
    assert cli.command_line(["shrink", "--onnx", "dense.onnx", "--out", "cut", "--set", "surgery.align=1"]) == 0
    text = 'data: {source: "npz:images.npz"}\ngiven: {dense: dense.onnx, compact: cut}\n'
    assert run(text, "--until", "onnx") == 0
    result = json.loads(Path("run/05-pair/stage.json").read_text())["result"]
    assert result["compact"]["form"] == "onnx" and result["max_abs"] < 1e-5
    assert result["top1_changed"] == 0


WRONG = {
    "no file": ("plan", ["given.dense=gone.pth"], "gone.pth is not there"),
    "no plan": ("plan", ["given.compact=."], "holds no plan.json and weights.safetensors"),
    "another network": ("plan", ['model.name="nets:small"'], "0.weight is float32 (16, 1, 3, 3); float32 (6, 1, 3, 3)"),
    "another size": ("plan", ["data.source=digits"], "give the network as many outputs as there are classes"),
    "onnx size": ("onnx", ['data.source="npz:wide.npz"'], "the data has float32 images (1, 9, 9) (C, H, W)"),
    "plan size": ("plan", ['data.source="npz:wide.npz"'], "cut for images (1, 8, 8) (C, H, W), and the data has (1, 9"),
    "onnx classes": ("onnx", ["data.source=digits"], "[None, 4], and the data has 10 classes"),
    "fixed batch": ("onnx", ["given.compact=fixed.onnx"], "takes batches of 2 only"),
    "no onnx": ("onnx", ["given.compact=text.onnx"], "text.onnx is no ONNX file"),
    "pickle": ("torch", ["given.compact=whole.pth"], "whole.pth cannot be read with weights_only=True"),
    "no builder": ("plan", ["given.compact=small.pth"], "weights alone do not say what builds the network"),
    "two builders": ("plan", ["given.network=nets:small"], "`compact` says how the network is built"),
    "no form": ("plan", ["given.dense=dense"], "`dense`; expected a file *.onnx"),
    "no spec": ("torch", ["given.network=nets"], "`given.network`: `nets` names no model"),
    "weights twice": ("plan", ["model.weights=dense.pth"], "given.dense names the weights"),
    "a target": ("plan", ["sparse.target.macs=0.5"], "nothing is trained from `given`"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line_before_any_work(
    name: str, guide: dict[str, str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form, overrides, expected = WRONG[name]
    import nets

    wide = np.zeros((8, 9, 9), np.uint8)
    wide[:, 0] = 1
    np.savez("wide.npz", x_train=wide, y_train=np.arange(8) % 4, x_test=wide, y_test=np.arange(8) % 4)
    Path("text.onnx").write_text("no")
    torch.save(nets.small(), "whole.pth")
    model = onnx.load("small.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, "fixed.onnx")
    assert run(guide[form], *(word for text in overrides for word in ("--set", text))) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("error: ") and expected in shown[-1]
    assert not list(Path("run").glob("[0-9]*"))


def test_a_stage_that_the_line_does_not_have_is_told(
    guide: dict[str, str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(guide["onnx"], "--until", "surgery") == 2
    assert "stage 30-surgery is asked for; one of 05-pair, 40-onnx" in capsys.readouterr().err
