"""Compact networks on the Hub: what is pushed and loaded back, and that a plan from there runs no stranger's code."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

import demport
from pipeline.models.demo import resnet
from pipeline.surgery import Source, save_compact
from runtime.errors import UserError
from tests.conftest import REPOSITORY

hub = pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
Cached = Callable[[Path, str], None]


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a dead channel, cut; its plan says how it is built."""
    torch.manual_seed(0)
    network = resnet(num_classes=4, input_shape=(1, 8, 8), width=4)
    with torch.no_grad():
        for name in ("weight", "bias"):
            network.get_parameter(f"layer1.0.bn1.{name}")[:2] = 0
    folder = tmp_path_factory.mktemp("compact")
    source = Source(name="demo:resnet", args={"width": 4}, num_classes=4, input_shape=(1, 8, 8))
    save_compact(demport.shrink(network.eval(), (torch.zeros(2, 1, 8, 8),)), folder, source)
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    """Puts a folder into a cache of the library's own form, which is then all that there is of the Hub."""
    cache = tmp_path / "cache"
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(folder: Path, name: str) -> None:
        place, commit = cache / f"models--{name.replace('/', '--')}", 40 * "a"
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)

    return put


def answers(network: torch.nn.Module) -> Any:
    return network(torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8))


def test_what_is_pushed_into_a_folder_loads_the_same_and_holds_no_pickle(compact: Path, tmp_path: Path) -> None:
    assert demport.push(compact, tmp_path / "out") == str(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "certificate.json", "plan.json", "weights.safetensors",
    ]  # fmt: skip
    assert torch.equal(answers(demport.load(tmp_path / "out")), answers(demport.load(compact)))
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    counts = json.loads((compact / "certificate.json").read_text())["channels"]
    assert card.startswith("---\nlibrary_name: demport\n")
    assert f"{counts['after']} of {counts['before']} channels remain" in card and counts["after"] < counts["before"]
    assert f'demport.load("{tmp_path / "out"}")' in card and "Input: (batch, 1, 8, 8)." in card
    with pytest.raises(UserError, match="is there already"):
        demport.push(compact, tmp_path / "out")


def test_a_repository_in_the_cache_loads_without_the_network(compact: Path, cached: Cached) -> None:
    cached(compact, "me/small")
    loaded = demport.load("hf:me/small")
    assert torch.equal(answers(loaded), answers(demport.load(compact))) and not loaded.training
    assert torch.equal(answers(demport.load(f"hf:me/small@{40 * 'a'}")), answers(loaded))
    with pytest.raises(UserError, match="hf:me/other cannot be had") as caught:
        demport.load("hf:me/other")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "expected"), [
    ({"name": "shutil:rmtree", "args": {"path": "marked"}}, "asks for shutil:rmtree, which is code of its own"),
    ({"name": "demo:resnet", "args": {"width": 4, "pretrained": True}}, "builds demo:resnet with pretrained"),
])  # fmt: skip
def test_a_plan_from_elsewhere_runs_no_code_of_its_own(
    source: dict[str, Any],
    expected: str,
    compact: Path,
    cached: Cached,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marked").mkdir()
    shutil.copytree(compact, tmp_path / "bad")
    plan = json.loads((compact / "plan.json").read_text())
    plan["source"] |= source
    (tmp_path / "bad" / "plan.json").write_text(json.dumps(plan))
    cached(tmp_path / "bad", "me/bad")
    with pytest.raises(UserError, match=re.escape(expected)):
        demport.load("hf:me/bad")
    assert (tmp_path / "marked").is_dir()
    own = resnet(num_classes=4, input_shape=(1, 8, 8), width=4)
    assert torch.equal(answers(demport.load("hf:me/bad", own)), answers(demport.load(compact)))


def test_weights_that_are_a_pickle_are_refused(compact: Path, cached: Cached, tmp_path: Path) -> None:
    shutil.copytree(compact, tmp_path / "bad")
    torch.save({"a": torch.zeros(1)}, tmp_path / "bad" / "weights.safetensors")
    cached(tmp_path / "bad", "me/pickle")
    with pytest.raises(UserError, match="cannot be read"):
        demport.load("hf:me/pickle")
    with pytest.raises(UserError, match="cannot be read"):
        demport.push(tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_push_to_the_hub_makes_the_repository_and_uploads_four_files(
    compact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = create_autospec(hub.HfApi, instance=True)
    uploaded: list[str] = []
    api.upload_folder.side_effect = lambda *, repo_id, folder_path, commit_message: uploaded.extend(
        sorted(path.name for path in Path(folder_path).iterdir())
    )
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert demport.push(compact, "hf:me/small", private=True) == "hf:me/small"
    api.create_repo.assert_called_once_with("me/small", private=True, exist_ok=True)
    assert uploaded == ["README.md", "certificate.json", "plan.json", "weights.safetensors"]
    api.create_repo.side_effect = hub.errors.HfHubHTTPError
    with pytest.raises(UserError, match="hf:me/small cannot be written"):
        demport.push(compact, "hf:me/small")


def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"holds no plan\.json"):
        demport.push(tmp_path, "hf:me/small")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub cannot be imported") as caught:
        demport.load("hf:me/small")
    assert caught.value.remedy == "pip install 'demport[hub]'"


def test_the_guides_lines_run(compact: Path, cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compact, "out")
    cached(compact, "me/small-resnet")
    api = create_autospec(hub.HfApi, instance=True)
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    text = (REPOSITORY / "docs" / "surgery.md").read_text("utf-8")
    (block,) = re.findall(r"^```py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"demport": demport}
    exec(block, names)
    assert torch.equal(answers(names["network"]), answers(demport.load(compact)))
