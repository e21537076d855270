"""Files named in a config: beside it first, then in the working folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.file import load_config
from pipeline.config.places import located


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config with its files in `a`; the working folder is `b`."""
    for name in ("a/flowers", "b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "w.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "b")
    path = tmp_path / "a" / "my.yaml"
    path.write_text(
        'data: {source: "imagefolder:flowers", root: sets}\nmodel: {name: "cifar:resnet20", weights: w.safetensors}\n'
    )
    return path


def test_what_lies_beside_the_config_is_read_from_the_working_folder(config: Path) -> None:
    loaded = load_config(config)
    assert (loaded.data.source, loaded.model.weights) == ("imagefolder:../a/flowers", "../a/w.safetensors")
    assert loaded.data.root == "sets"  # not there: as it is, in the working folder
    (config.parents[1] / "b" / "flowers").mkdir()
    assert load_config(config).data.source == "imagefolder:../a/flowers"  # beside the config comes first
    (config.parent / "flowers").rmdir()
    assert load_config(config).data.source == "imagefolder:flowers"


def test_overrides_are_of_the_working_folder(config: Path) -> None:
    assert load_config(config, ["data.source=imagefolder:flowers"]).data.source == "imagefolder:flowers"
    assert load_config(config, ["model.weights=w.safetensors"]).model.weights == "w.safetensors"


@pytest.mark.parametrize("source", ["digits", "npz:", "imagefolder:/abs", "torchvision:flowers", "npz:\0", 3, None])
def test_what_names_no_relative_file_stays(config: Path, source: object) -> None:
    tree = {"data": {"source": source}, "model": "text", "check": {"reference": ""}}
    assert located(tree, config.parent) == tree
    assert located({}, config.parent) == {}
