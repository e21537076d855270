"""`demport shrink` on a network whose dead channels are known, by proof and by data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import cli
from pipeline.surgery import load_compact

MODULE = """
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, num_classes))
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Six channels: number 1 is zero by its weights, number 4 on every image of the digits, the others live."""
    (tmp_path / "shrink_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    norm = layers[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.bias.fill_(0.5)
        norm.weight[1], norm.bias[1] = 0.0, -1.0
        norm.bias[4] = -1000.0
    save_file({name: tensor.contiguous() for name, tensor in layers.state_dict().items()}, tmp_path / "w.safetensors")
    return layers.eval()


COMMON = ["shrink", "--model", "shrink_net:build", "--weights", "w.safetensors", "--set", "surgery.align=1"]


def shrink(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert cli.command_line([*COMMON, *arguments]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(document, dict)
    return document


def test_proof_alone_cuts_what_the_weights_kill(network: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    told = shrink(capsys, "--input-shape", "1,8,8", "--classes", "10", "--out", "out")
    assert (told["channels_before"], told["channels_dead"], told["channels_after"]) == (6, 1, 5)
    assert told["removed"] == {"by_proof": 1, "by_measurement": 0} and told["max_abs_diff"] is None
    images = torch.randn(16, 1, 8, 8)
    compact = load_compact(Path("out"))
    assert torch.allclose(compact(images), network(images), atol=1e-5)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("align", "line"),
    [
        ("4", "1 dead channel stays .*: widths are kept as surgery.align=4 asks; --set surgery.align=1 cuts"),
        ("1", ""),
    ],
)
def test_dead_channels_that_stay_are_told(
    network: nn.Module, capsys: pytest.CaptureFixture[str], align: str, line: str
) -> None:
    """5 live channels of 6 are 6 at a multiple of 4: the layer has no more."""
    arguments = ["--input-shape", "1,8,8", "--classes", "10", "--out", "out", "--set", f"surgery.align={align}"]
    assert cli.command_line([*COMMON[:5], *arguments]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["channels_after"] == (6 if line else 5)
    assert re.search(line, captured.err) if line else "dead channel" not in captured.err


def test_the_last_channel_of_a_layer_stays(network: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file("w.safetensors")
    state["1.weight"].zero_()
    state["1.bias"].fill_(-1.0)
    save_file(state, "w.safetensors")
    assert cli.command_line([*COMMON, "--input-shape", "1,8,8", "--classes", "10", "--out", "out"]) == 0
    assert re.search("1 dead channel stays .*: layers that must be equally wide", capsys.readouterr().err)


def test_data_cuts_what_is_dead_on_it_too(network: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    told = shrink(capsys, "--data", "digits", "--out", "out")
    assert (told["channels_before"], told["channels_dead"], told["channels_after"]) == (6, 2, 4)
    assert told["removed"] == {"by_proof": 1, "by_measurement": 1}
    assert isinstance(told["max_abs_diff"], float) and told["max_abs_diff"] < 1e-4
    assert sorted(p.name for p in Path("out").iterdir()) == ["certificate.json", "plan.json", "weights.safetensors"]


def test_the_certificate_tells_the_evidence_and_what_the_outputs_lost(
    network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """Digits: 1,397 training and 400 test images. Channel 4 of a ReLU is 0 on all, so that no answer changes."""
    shrink(capsys, "--data", "digits", "--out", "out")
    certificate = json.loads(Path("out/certificate.json").read_text("utf-8"))
    (group,) = certificate["groups"]
    assert group["removed_indices"] == [1, 4]
    assert (group["images"], group["largest_activation"]) == (certificate["confirmation"]["images"], 0.0)
    change = certificate["change"]
    assert change["train"] is None and change["test"]["top1_changed"] == 0
    assert change["test"]["max_abs"] < 1e-4 and change["test"]["images"] + group["images"] == 1797


def test_a_death_measured_behind_another_activation_is_told_as_an_approximation(
    network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """SiLU: channel 4 averages below 0 with magnitudes up to 0.278, and the outputs change, on both splits."""
    Path("shrink_silu.py").write_text(MODULE.replace("nn.ReLU()", "nn.SiLU()"), "utf-8")
    weights = load_file("w.safetensors")
    weights["1.bias"][4], weights["1.weight"][4] = -3.0, 1.0
    save_file(weights, "w.safetensors")
    shrink(capsys, "--model", "shrink_silu:build", "--data", "digits", "--out", "out")
    certificate = json.loads(Path("out/certificate.json").read_text("utf-8"))
    (group,) = certificate["groups"]
    assert 4 in group["removed_indices"] and certificate["confirmation"]["approximate"] == ["_2"]
    assert 0.1 < group["largest_activation"] <= 0.2785
    assert certificate["change"]["train"]["images"] == group["images"]
    assert certificate["change"]["train"]["max_abs"] > 1e-3 < certificate["change"]["test"]["max_abs"]
    assert certificate["max_abs_diff_fp32"] < 1e-4


MESSAGES = {
    "shape": (["--input-shape", "1,8", "--out", "out"], "--input-shape 1,8", "three whole numbers"),
    "zero": (["--input-shape", "1,0,8", "--out", "out"], "--input-shape 1,0,8", "C,H,W"),
    "no shape": (["--out", "out"], "no --input-shape and no --data", "add --input-shape"),
    "other shape": (["--data", "digits", "--input-shape", "3,8,8", "--out", "out"], "1,8,8", "leave --input-shape out"),
    "classes": (["--data", "digits", "--classes", "7", "--out", "out"], "10, the classes of", "leave --classes out"),
    "folder": (["--input-shape", "1,8,8", "--out", "full"], "full is there already", "choose another --out"),
    "weights": (["--input-shape", "1,8,8", "--classes", "7", "--out", "out"], "for 10 classes; 7", "for these classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    case: str, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full", "x").touch()
    arguments, found, remedy = MESSAGES[case]
    assert cli.command_line([*COMMON, *arguments]) == 2
    shown = capsys.readouterr()
    assert found in shown.err and remedy in shown.err and shown.err.count("\n") == 1, shown.err
    assert shown.out == "" and not Path("out").exists() and not list(Path().glob(".*.tmp"))
