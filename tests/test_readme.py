"""What the README and the guides say is true: files exist, commands parse or run, examples work."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import tables

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """(file, command line) of every line in an `sh` block, continued lines joined."""
    return [
        (path.name, line.strip())
        for path in GUIDES
        for block in blocks(path, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def test_the_readme_sells_and_starts() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert "make demo" in lines[:40]


def test_every_folder_says_in_a_phrase_what_it_holds() -> None:
    folders = [file for name in tables.PACKAGES for file in (ROOT / name).rglob("__init__.py")]
    phrases = [tables.phrase(file) for file in folders]
    assert len(set(phrases)) == len(phrases) > 20
    assert [phrase for phrase in phrases if len(phrase) > 120] == []


def test_the_house_in_the_readme_names_every_room() -> None:
    (text,) = blocks(ROOT / "README.md", "text")
    rooms = [path.parent.name for name in tables.PACKAGES for path in (ROOT / name).glob("*/__init__.py")]
    assert sorted(line.split("/")[0].strip() for line in text.splitlines() if line[0] == " ") == sorted(rooms)
    assert text == tables.house(2)


@pytest.mark.parametrize(("file", "line"), commands())
def test_commands_of_the_guides_parse(file: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets) and len(words) > 1
    elif words[0] == "demport" and "--help" not in words:
        group = typer.main.get_command(importlib.import_module("pipeline.cli").app)
        command = group.commands[words[1]]  # type: ignore[attr-defined]  # the app is a group
        context = command.make_context(words[1], words[2:])
        assert context.args == []
        assert context.info_name == words[1]
    elif words[0] == "torchrun":
        module = words.index("-m")
        assert words[module + 1] == "demport"
        test_commands_of_the_guides_parse(file, shlex.join(["demport", *words[module + 2 :]]))
    else:
        assert words[0] in ("demport", "docker", "python", "pip", "curl", "trtexec", "tritonserver"), f"{file}: {line}"
        assert len(words) > 1


@pytest.mark.parametrize("line", ["demport run --help", "demport doctor"])
def test_cheap_commands_of_the_readme_run(line: str) -> None:
    assert ("README.md", line) in commands()
    words = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", "demport", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3


def test_ci_does_what_contributing_says() -> None:
    script = ROOT / ".ci" / "run"
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert script.stat().st_mode & 0o111
    text = script.read_text("utf-8")
    assert re.findall(r"^step (\w+) ", text, re.MULTILINE) == ["test", "demo", "server", "container"]
    (limit_s,) = re.findall(r"^limit_s=(\d+)$", text, re.MULTILINE)
    assert int(limit_s) <= 90 * 60


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8"))
    inner = [target for target in targets if "://" not in target]
    assert [target for target in inner if not (path.parent / target).exists()] == []
    assert path.read_text("utf-8").count("```") % 2 == 0


def test_the_readmes_own_loop_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    names = {
        "network": network, "optimizer": torch.optim.SGD(network.parameters(), 0.05), "cross_entropy": cross_entropy,
        "example": torch.zeros(2, 1, 8, 8), "steps": 48,
        "batches": [(torch.randn(16, 1, 8, 8), torch.randint(4, (16,))) for _ in range(48)],
    }  # fmt: skip
    (code,) = blocks(ROOT / "README.md", "python")
    assert len(code.splitlines()) <= 12
    exec(code, names)
    compact: Any = names["compact"]
    first, second = (compact.model.get_parameter(f"{name}.weight") for name in (0, 3))
    assert len(first) < 16 and second.shape[1] == len(first)
    (graph,) = tmp_path.glob("*.onnx")
    assert onnx.load(str(graph)).graph.initializer


def test_the_readmes_run_on_own_data_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its YAML as it stands, on a folder of images that lies beside it, asked from another folder."""
    import numpy as np
    from PIL import Image

    from pipeline import cli

    (text,) = blocks(ROOT / "README.md", "yaml")
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    draw = np.random.default_rng(0)
    for part, label in ((part, label) for part in ("train", "val") for label in ("rose", "tulip")):
        folder = tmp_path / "flowers" / part / label
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(text.splitlines()) <= 13  # its name, and twelve lines
    words = ["run", "../my.yaml", "--out", "out", "--until", "dense", "--set", "dense.epochs=1"]
    assert cli.command_line([*words, "--set", "dense.batch_size=4"]) == 0
    assert (tmp_path / "elsewhere" / "out" / "10-dense" / "stage.json").is_file()
    assert not (tmp_path / "elsewhere" / "out" / "30-surgery").exists()


def test_the_guide_to_your_own_network_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline import models
    from pipeline.config import file as config_file

    guide = ROOT / "docs" / "bring-your-own-model.md"
    for block in (*blocks(guide, "python"), *blocks(guide, "yaml")):
        if named := re.match(r"# (my\S+)\n", block):
            (tmp_path / named[1]).write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = config_file.load_config(tmp_path / "my.yaml")
    network = models.build(config.model, num_classes=10, input_shape=(1, 8, 8))
    assert config.model.name == "my_net:build"
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert next(network.parameters()).shape[0] == 64  # model.args


def test_the_guide_to_surgery_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torchvision.models import resnet18

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = resnet18(num_classes=4).eval()
    model.layer1[0].bn1.weight.data[:10], model.layer1[0].bn1.bias.data[:10] = 0.0, 0.0
    first, second = blocks(ROOT / "docs" / "surgery.md", "python")
    told = {"torch": torch, "model": model}
    exec(first, told)
    again = told["again"]
    assert again.get_parameter("layer1.0.conv1.weight").shape[0] == 54
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), told["compact"].model(images))
    exec(second, told)
    assert told["again_whole"].get_parameter("layer1.0.conv1.weight").shape[0] == 64
    assert torch.equal(told["again_whole"](images), told["whole"].model(images))
