"""What the README and the guides say is true: files exist, commands parse or run, examples work."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("pipeline", "export", "runtime")


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


def tree() -> list[Path]:
    """The entries of the README's tree, relative to the repository."""
    entries: list[Path] = []
    above: list[tuple[int, Path]] = []
    for line in blocks(ROOT / "README.md", "text")[0].splitlines():
        names = re.match(r"( *)(\S+(?: \S+)*?)(?:  +\S.*)?$", line)
        assert names, line
        depth = len(names[1])
        while above and above[-1][0] >= depth:
            above.pop()
        parent = above[-1][1] if above else Path()
        for name in names[2].split():
            entries.append(parent / name.rstrip("/"))
            if name.endswith("/"):
                above.append((depth, entries[-1]))
    return entries


def test_the_tree_names_what_is_there() -> None:
    entries = tree()
    assert len(entries) == len(set(entries)) > 40
    assert [str(entry) for entry in entries if not (ROOT / entry).exists()] == []


def test_the_tree_leaves_no_module_out() -> None:
    entries = set(tree())
    opened = {entry.parent for entry in entries} - {Path()}
    assert {Path(name) for name in PACKAGES} <= opened
    there = {
        path.relative_to(ROOT)
        for folder in opened
        for path in (ROOT / folder).iterdir()
        if (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").is_file()
    }
    assert sorted(str(path) for path in there - entries) == []


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
        assert words[module + 1] == "pipeline.cli"
        test_commands_of_the_guides_parse(file, shlex.join(["demport", *words[module + 2 :]]))
    else:
        assert words[0] in ("demport", "docker", "python", "pip", "curl", "trtexec", "tritonserver"), f"{file}: {line}"
        assert len(words) > 1


@pytest.mark.parametrize("line", ["demport run --help", "demport doctor"])
def test_cheap_commands_of_the_readme_run(line: str) -> None:
    assert ("README.md", line) in commands()
    words = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
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
    assert int(limit_s) <= 40 * 60


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8"))
    inner = [target for target in targets if "://" not in target]
    assert [target for target in inner if not (path.parent / target).exists()] == []
    assert path.read_text("utf-8").count("```") % 2 == 0


def test_the_guide_to_your_own_network_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline import config_file, models

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
    (code,) = blocks(ROOT / "docs" / "surgery.md", "python")
    told = {"torch": torch, "model": model}
    exec(code, told)
    again = told["again"]
    assert again.get_parameter("layer1.0.conv1.weight").shape[0] == 54
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), told["compact"].model(images))
